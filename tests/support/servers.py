"""Real servers for tests, started by the code of the daemon."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from clonepool.config import EmbeddedSection, TemplateSection
from clonepool.core.naming import Namer, Serials
from clonepool.postgres.capabilities import Capabilities, inspect
from clonepool.postgres.embedded.server import EmbeddedServer, discard
from clonepool.postgres.gateway import Gateway
from clonepool.postgres.roles import OURS, Ownership, Roles
from clonepool.postgres.templates.builder import Builder
from clonepool.postgres.templates.recipe import Generation, Recipe
from support import clusters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.postgres.endpoint import Endpoint

ROOT = Path(__file__).resolve().parents[2]
BLOG = ["examples/blog/*.sql"]
SHARED_DATA = ROOT.parent / "shared" / "data"


@contextmanager
def open_directory() -> Iterator[Path]:
    """Make a directory that every user can enter, unlike those of pytest."""
    directory = Path(tempfile.mkdtemp(prefix="clonepool-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running_server(binaries: Path) -> Iterator[EmbeddedServer]:
    """Run a server of these binaries; delete its data at the end."""
    with open_directory() as state:
        section = EmbeddedSection(
            binaries=str(binaries), settings={"max_prepared_transactions": "5"}
        )
        clusters.lay_down(state, section, 16)
        server = EmbeddedServer(section, state, 16)
        try:
            anyio.run(server.start)
            yield server
            anyio.run(server.stop)
        finally:
            anyio.run(discard, state)


def role_of(server: Endpoint, user: str) -> Endpoint:
    """Return the endpoint for a role that a test made with the password `plain`."""
    return msgspec.structs.replace(server, user=user, password="plain", maintenance="postgres")


class ServerTools:
    """What a daemon uses of `clonepool.postgres` on one server, without the daemon."""

    def __init__(
        self,
        endpoint: Endpoint,
        psql: Path,
        capabilities: Capabilities,
        instance: str,
        *,
        embedded: bool = True,
    ) -> None:
        self.gateway = Gateway(endpoint, "clonepool test")
        self.gateway.harden(major=capabilities.major, superuser=capabilities.superuser)
        self.capabilities = capabilities
        self.namer = Namer(instance, capabilities.system_identifier)
        self.serials = Serials(0)
        self.psql = psql
        self.roles = Roles(self.gateway, capabilities, embedded=embedded)
        self.builder = Builder(
            self.gateway,
            self.namer,
            capabilities,
            self.roles,
            endpoint,
            psql,
            self.serials.next,
        )

    @classmethod
    async def open(
        cls, endpoint: Endpoint, psql: Path, instance: str, *, embedded: bool = True
    ) -> ServerTools:
        """Inspect the server and set up."""
        gateway = Gateway(endpoint, "clonepool test")
        capabilities = await inspect(gateway)
        await gateway.close()
        return cls(endpoint, psql, capabilities, instance, embedded=embedded)

    async def has_contrib(self) -> bool:
        """Say whether clones can be rewound on this server."""
        async with self.gateway.control() as session:
            found = await session.value(
                "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_walinspect'"
            )
        return bool(found)

    async def build(
        self,
        sql: list[str],
        directory: Path = ROOT,
        template: str = "blog",
        ownership: Ownership = OURS,
        *,
        rewindable: bool = False,
    ) -> Generation:
        """Build a template."""
        section = TemplateSection(sql=sql, build_timeout=60.0)
        return await self.make(
            section, directory, template, rewindable=rewindable, ownership=ownership
        )

    async def make(
        self,
        section: TemplateSection,
        directory: Path,
        template: str = "made",
        *,
        rewindable: bool = False,
        lower: Generation | None = None,
        anew: bool = False,
        ownership: Ownership = OURS,
    ) -> Generation:
        """Build a template of any sources."""
        await self.roles.ensure_owner(ownership)
        recipe = Recipe(
            template,
            section,
            directory,
            rewindable=rewindable,
            ownership=ownership,
            lower=lower,
        )
        return await self.builder.ensure(recipe, anew=anew)
