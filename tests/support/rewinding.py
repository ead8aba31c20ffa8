"""A clone that is leased, changed and rewound without a daemon, and checked by an oracle."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
import pytest

from clonepool.core.naming import Identity, Kind
from clonepool.postgres import databases, leftovers
from clonepool.postgres.clones.lifecycle import (
    IncompleteCloneError,
    adopt,
    make_clone,
    park,
)
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.rewinder import Rewinder
from support.kitchen_sink import contents, run_script
from support.servers import ServerTools, open_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.embedded.server import EmbeddedServer
    from clonepool.postgres.templates.recipe import Generation


class RewindHarness:
    """A template, its rewinder, and the clone under test."""

    def __init__(self, server: EmbeddedServer, tools: ServerTools, generation: Generation) -> None:
        self.server = server
        self.tools = tools
        self.generation = generation
        self.rewinder = Rewinder(tools.gateway, self._make_reference, tools.capabilities.major)
        self.clone = ""
        self.pristine: list[str] = []
        self.why = ""
        self.stays = False
        self._others: list[str] = []

    async def recreate(self) -> None:
        """Make a clone, measure its baseline, and read its contents."""
        await self.drop()
        self.clone = await self._make(Kind.CLONE)
        await self.measure()
        self.pristine = self.pristine or await self.look()

    async def measure(self) -> None:
        """Measure the baseline of the clone."""
        await self.rewinder.track(self.clone, self.generation.database)

    async def another(self) -> str:
        """Make one more clone with a baseline, for another lease."""
        name = await self._make(Kind.CLONE)
        await self.rewinder.track(name, self.generation.database)
        self._others.append(name)
        return name

    async def restart(self) -> None:
        """Pass the clone to a new rewinder, as a restart does; recreate it if necessary.

        Raises:
            VerificationError: it was rewound, and the new rewinder finds that it is not clean.
        """
        provable = self.rewinder.can_be_adopted(self.clone)
        self.rewinder.forget(self.clone)
        await self.rewinder.close()
        gateway = self.tools.gateway
        self.rewinder = Rewinder(gateway, self._make_reference, self.tools.capabilities.major)
        if not provable:
            await self.recreate()
            return
        await park(gateway, self.clone, {})
        await self.rewinder.ensure_baseline(self.generation.database)
        try:
            await adopt(gateway, self.clone, self.generation.contents, {}, 30)
        except IncompleteCloneError:  # a file is another one, after TRUNCATE
            await self.recreate()
            return
        await self.rewinder.track_adopted(self.clone, self.generation.database)

    async def drop(self) -> None:
        """Drop the clone."""
        if self.clone:
            self.rewinder.forget(self.clone)
            await leftovers.clear(self.tools.gateway, self.clone)
            await databases.drop(self.tools.gateway, self.clone)
            self.clone = ""

    async def drop_others(self) -> None:
        """Drop the clones of `another`."""
        for name in self._others:
            self.rewinder.forget(name)
            await databases.drop(self.tools.gateway, name)
        self._others.clear()

    async def _make(self, kind: Kind) -> str:
        serial = self.tools.serials.next()
        name = self.tools.namer.name(Identity(kind, "kitchen_sink", self.generation.short, serial))
        await make_clone(
            self.tools.gateway, name, self.generation.database, self.generation.contents,
            options="", facts={}, seconds=30,
        )  # fmt: skip
        return name

    async def _make_reference(self, _: str) -> str:
        return await self._make(Kind.REFERENCE)

    async def look(self) -> list[str]:
        """Return the contents of the clone, read by the oracle."""
        return await anyio.to_thread.run_sync(
            contents, self.server.psql, self.server.endpoint, self.clone
        )

    async def lease(self, script: str, *, verify_every: int = 0) -> bool:
        """Run a script on the clone and recycle it; say whether it was rewound."""
        await anyio.to_thread.run_sync(
            run_script, self.server.psql, self.server.endpoint, self.clone, script
        )
        return await self.recycle(verify_every=verify_every)

    async def recycle(self, *, verify_every: int = 0) -> bool:
        """Rewind the clone or recreate it; say whether it was rewound. `why` has the reason if not.

        Every other rewind keeps its session, and the next one uses it.
        """
        if not self.stays:
            self.rewinder.close_session(self.clone)
        ours = self.rewinder.backend_pid(self.clone)
        assert await databases.end_sessions(self.tools.gateway, self.clone, but=ours)
        self.stays = not self.stays
        self.why = ""
        try:
            seen = await self.rewinder.inspect(self.clone)
            await self.rewinder.rewind(
                self.clone,
                {},
                inspection=seen,
                verify_every=verify_every,
                stay_connected=self.stays,
            )
        except CannotRewindError as reason:
            self.why = str(reason)
            await self.recreate()
            return False
        return True


@asynccontextmanager
async def open_harness(
    server: EmbeddedServer, *schema: str, looks: bool = True
) -> AsyncIterator[RewindHarness]:
    """Build a template from SQL files, each run in its own session, and make a clone of it.

    Skips the test on servers where clones cannot be rewound.

    Args:
        server: server to use.
        schema: texts of the SQL files.
        looks: whether the oracle reads the pristine clone; False if it is too large.
    """
    tools = await ServerTools.open(server.endpoint, server.psql, "rewind")
    try:
        if not await tools.has_contrib():
            pytest.skip("no contrib")
        with open_directory() as directory:
            for number, sql in enumerate(schema):
                (directory / f"{number}.sql").write_text(sql)
            generation = await tools.build(["*.sql"], directory, "kitchen_sink", rewindable=True)
        made = RewindHarness(server, tools, generation)
        made.pristine = [] if looks else ["never looked at"]
        try:
            await made.recreate()
            yield made
        finally:
            await made.drop()
            await made.drop_others()
            await made.rewinder.close()
            await databases.drop(tools.gateway, generation.database, sealed=True)
    finally:
        await tools.gateway.close()
