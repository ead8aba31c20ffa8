"""A made-up template, and a clone of it that made-up leases change, one after another."""

from __future__ import annotations

import difflib
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread

from clonepool.errors import StatementError
from clonepool.postgres import databases
from support.integrity import problems
from support.rewinding import RewindHarness
from support.servers import ServerTools, open_directory
from support.sessions import End, Script, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.embedded.server import EmbeddedServer
    from support.schemas import Schema

LONGEST_SHOWN, MOST_SHOWN = 300, 60
"""Of how a clone differs: characters of a line, and lines."""
OBSTACLES = {
    "trigger always",
    "trigger that skips always",
    "trigger for replicas",
    "rule always",
    "stored by a function",
    "stored by the time zone",
    "stored by settings",
    "indexed by settings",
    "check not valid",
    "domain not valid",
    "publication",
    "publication of all",
}
"""What a schema may have that stands in the way of putting rows back.

A table that is published may refuse every DELETE, for want of a replica identity.
"""
LEGITIMATE = (
    "cannot be copied",
    "and it is too large",
    "and it is a materialized view",
    "the catalog was changed: pg_statistic",
)
"""Why changed rows alone may mean that a clone is recreated; too large are only unlogged tables,
VACUUM changes a materialized view, and ANALYZE finds other statistics of other rows."""


class Round(NamedTuple):
    """What one lease does, whether that is to be proven, and whether a restart follows.

    After a restart the clone is another daemon's, which believes nothing.
    """

    script: Script
    proven: bool
    restarted: bool

    def __repr__(self) -> str:
        """Stay short: the test notes the script."""
        return f"<round of {len(self.script.sessions)} sessions>"


class CloneDiffersError(AssertionError):
    """A clone that is said to be clean is not what its template is."""


class RecycleHarness(RewindHarness):
    """Recycles as the daemon does: what cannot be measured or rewound is made anew.

    Attributes:
        is_measured: whether the clone could be measured, without which it is not rewound.
        rewinds: how often this clone was rewound so far.
        unmeasured: why it could not be measured, or empty.
    """

    is_measured = False
    rewinds = 0
    unmeasured = ""

    async def recreate(self) -> None:
        """Make a clone, of which nothing was rewound yet."""
        self.rewinds = 0
        await super().recreate()

    async def measure(self) -> None:
        """Take its measure if it has one."""
        self.is_measured, self.unmeasured = False, ""
        try:
            await super().measure()
            self.is_measured = True
        except StatementError as error:
            self.unmeasured = str(error)

    async def recycle(self, *, verify_every: int = 0) -> bool:
        """Rewind the clone, or make a new one also where PostgreSQL refuses."""
        try:
            rewound = await super().recycle(verify_every=verify_every)
        except StatementError as error:
            self.why = f"the rewind failed: {error}"
            await self.recreate()
            return False
        self.rewinds += rewound
        return rewound

    async def run_round(self, planned: Round) -> bool:
        """Do it, with sessions left open or not, and recycle; say whether it was rewound."""
        await run_on_clone(self, planned.script)
        return await self.recycle(verify_every=1 if planned.proven else 0)

    async def check_contents(self) -> None:
        """Ask the oracle.

        Raises:
            NotTheSameError: the clone differs; the message shows where.
        """
        shown = differences(self.pristine, await self.look())
        if shown:
            raise CloneDiffersError(shown)

    async def check_integrity(self) -> None:
        """Ask PostgreSQL's own checkers.

        Raises:
            NotTheSameError: indexes, pages or the visibility map are damaged.
        """
        found = await anyio.to_thread.run_sync(
            problems, self.server.psql, self.server.endpoint, self.clone
        )
        if found:
            raise CloneDiffersError("\n".join(found))


async def run_on_clone(harness: RewindHarness, script: Script) -> None:
    """Let a script do its work on the clone, and end what it left open, as the daemon does.

    Where it left nothing open, a session of ours that stays on the clone goes on.
    """
    at_work = running(script, harness.server.psql, harness.server.endpoint, harness.clone)
    await anyio.to_thread.run_sync(at_work.__enter__)
    try:
        if any(session.end is End.OPEN for session in script.sessions):
            assert await databases.end_sessions(harness.tools.gateway, harness.clone)
    finally:
        await anyio.to_thread.run_sync(at_work.__exit__, None, None, None)


@asynccontextmanager
async def open_recycle_harness(server: EmbeddedServer, sql: str) -> AsyncIterator[RecycleHarness]:
    """Build a template, make a clone of it, and leave nothing of either."""
    tools = await ServerTools.open(server.endpoint, server.psql, "trial")
    with open_directory() as directory:
        (directory / "schema.sql").write_text(sql)
        generation = await tools.build(["schema.sql"], directory, "made_up", rewindable=True)
    harness = RecycleHarness(server, tools, generation)
    try:
        await harness.recreate()
        yield harness
    finally:
        await harness.drop()
        await harness.rewinder.close()
        await _drop_all(tools)
        await tools.gateway.close()


def must_be_rewound(schema: Schema, script: Script) -> bool:
    """Say whether nothing in the template or the lease speaks for making the clone anew."""
    return script.only_rows and OBSTACLES.isdisjoint(schema.features)


def may_be_recreated(why: str) -> bool:
    """Say whether a clone may be made anew for that, where it ought to be rewound."""
    return any(reason in why for reason in LEGITIMATE)


def differences(expected: list[str], found: list[str]) -> str:
    """Return where the oracle does not say the same, empty if it does."""
    if expected == found:
        return ""
    lines = difflib.unified_diff(expected, found, "template", "clone", lineterm="", n=0)
    return "\n".join(line[:LONGEST_SHOWN] for line in itertools.islice(lines, MOST_SHOWN))


async def _drop_all(tools: ServerTools) -> None:
    """Leave neither the generation nor a reference."""
    ours, _ = await databases.list_ours(tools.gateway, tools.namer)
    for database in ours:
        await databases.drop(tools.gateway, database.name, sealed=True)
