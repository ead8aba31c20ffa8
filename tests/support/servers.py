"""Real servers for tests, made by the same code that the daemon uses."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from clonepool.config import EmbeddedSection, TemplateSection
from clonepool.core.naming import Namer, Serials
from clonepool.postgres.builder import Builder
from clonepool.postgres.capabilities import Capabilities, inspect
from clonepool.postgres.embedded.server import EmbeddedServer, discard
from clonepool.postgres.gateway import Gateway
from clonepool.postgres.recipe import Generation, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.postgres.endpoint import Endpoint

ROOT = Path(__file__).resolve().parents[2]
BLOG = ["examples/blog/*.sql"]
SHARED_DATA = ROOT.parent / "shared" / "data"


@contextmanager
def open_directory() -> Iterator[Path]:
    """Make a directory that every user may pass through; pytest's own are closed to others."""
    directory = Path(tempfile.mkdtemp(prefix="clonepool-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running_server(binaries: Path) -> Iterator[EmbeddedServer]:
    """Run a server of these binaries, and leave nothing of it."""
    with open_directory() as state:
        server = EmbeddedServer(
            EmbeddedSection(binaries=str(binaries), settings={"max_prepared_transactions": "5"}),
            state,
            16,
        )
        try:
            anyio.run(server.start)
            yield server
            anyio.run(server.stop)
        finally:
            anyio.run(discard, state)


class Workshop:
    """The postgres room on one server: what a daemon would have, without the daemon."""

    def __init__(
        self, endpoint: Endpoint, psql: Path, capabilities: Capabilities, instance: str
    ) -> None:
        self.gateway = Gateway(endpoint, "clonepool test")
        self.capabilities = capabilities
        self.namer = Namer(instance, capabilities.system_identifier)
        self.serials = Serials(0)
        self.psql = psql
        self.builder = Builder(self.gateway, self.namer, capabilities, psql, self.serials.next)

    @classmethod
    async def open(cls, endpoint: Endpoint, psql: Path, instance: str) -> Workshop:
        """Look at the server and set up."""
        gateway = Gateway(endpoint, "clonepool test")
        capabilities = await inspect(gateway)
        await gateway.close()
        return cls(endpoint, psql, capabilities, instance)

    async def has_contrib(self) -> bool:
        """Say whether clones can be rewound on this server."""
        async with self.gateway.control() as session:
            found = await session.value(
                "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_visibility'"
            )
        return bool(found)

    async def build(
        self,
        sql: list[str],
        directory: Path = ROOT,
        template: str = "blog",
        role: str = "",
        *,
        rewindable: bool = False,
    ) -> Generation:
        """Build a template."""
        section = TemplateSection(sql=sql, role=role, build_timeout=60.0)
        return await self.make(section, directory, template, rewindable=rewindable)

    async def make(
        self,
        section: TemplateSection,
        directory: Path,
        template: str = "made",
        *,
        rewindable: bool = False,
        lower: Generation | None = None,
        anew: bool = False,
    ) -> Generation:
        """Build a template of any sources."""
        recipe = Recipe(template, section, directory, rewindable=rewindable, lower=lower)
        return await self.builder.ensure(recipe, anew=anew)
