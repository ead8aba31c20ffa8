"""Rounds of lease and recycle on a clone of a random template, checked by an oracle."""

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
"""Most characters per line, and most lines, of a difference that is shown."""
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
"""Features of a schema that can prevent rows from being put back.

A published table without a replica identity refuses every DELETE.
"""
LEGITIMATE = (
    "cannot be copied",
    "and it is too large",
    "and it is a materialized view",
    "the catalog was changed: pg_statistic",
)
"""Reasons to recreate a clone although only rows were changed: an unlogged table is too
large, VACUUM changed a materialized view, or ANALYZE found other statistics of other rows."""


class Round(NamedTuple):
    """What one lease does, whether the rewind is verified, and whether a restart follows.

    A restart hands the clone to a new daemon, which checks it from scratch.
    """

    script: Script
    proven: bool
    restarted: bool

    def __repr__(self) -> str:
        """Return a short text: the test notes the script itself."""
        return f"<round of {len(self.script.sessions)} sessions>"


class CloneDiffersError(AssertionError):
    """A clone that was reported as clean differs from its template."""


class RecycleHarness(RewindHarness):
    """Recycles as the daemon does: recreates a clone without a baseline, or one it cannot rewind.

    Attributes:
        is_measured: whether the baseline could be measured, without which nothing is rewound.
        rewinds: number of rewinds of this clone so far.
        unmeasured: why the baseline could not be measured, or empty.
    """

    is_measured = False
    rewinds = 0
    unmeasured = ""

    async def recreate(self) -> None:
        """Make a new clone."""
        self.rewinds = 0
        await super().recreate()

    async def measure(self) -> None:
        """Measure the baseline of the clone, if that is possible."""
        self.is_measured, self.unmeasured = False, ""
        try:
            await super().measure()
            self.is_measured = True
        except StatementError as error:
            self.unmeasured = str(error)

    async def recycle(self, *, verify_every: int = 0) -> bool:
        """Rewind the clone; recreate it also if PostgreSQL refuses a statement."""
        try:
            rewound = await super().recycle(verify_every=verify_every)
        except StatementError as error:
            self.why = f"the rewind failed: {error}"
            await self.recreate()
            return False
        self.rewinds += rewound
        return rewound

    async def run_round(self, planned: Round) -> bool:
        """Run the script of a round and recycle the clone; say whether it was rewound."""
        await run_on_clone(self, planned.script)
        return await self.recycle(verify_every=1 if planned.proven else 0)

    async def check_contents(self) -> None:
        """Compare the clone with the template by the oracle.

        Raises:
            CloneDiffersError: the clone differs; the message shows where.
        """
        shown = differences(self.pristine, await self.look())
        if shown:
            raise CloneDiffersError(shown)

    async def check_integrity(self) -> None:
        """Check the clone with PostgreSQL's own tools.

        Raises:
            CloneDiffersError: indexes, pages or the visibility map are damaged.
        """
        found = await anyio.to_thread.run_sync(
            problems, self.server.psql, self.server.endpoint, self.clone
        )
        if found:
            raise CloneDiffersError("\n".join(found))


async def run_on_clone(harness: RewindHarness, script: Script) -> None:
    """Run a script on the clone, and end the sessions that it left open, as the daemon does.

    If it left none open, a session of ours on the clone stays.
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
    """Build a template and a clone of it; drop both at the end."""
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
    """Say whether the clone must be rewound, as neither template nor lease prevents that."""
    return script.only_rows and OBSTACLES.isdisjoint(schema.features)


def may_be_recreated(why: str) -> bool:
    """Say whether a clone may be recreated for that reason where a rewind is expected."""
    return any(reason in why for reason in LEGITIMATE)


def differences(expected: list[str], found: list[str]) -> str:
    """Return the differences between two outputs of the oracle, or an empty text."""
    if expected == found:
        return ""
    lines = difflib.unified_diff(expected, found, "template", "clone", lineterm="", n=0)
    return "\n".join(line[:LONGEST_SHOWN] for line in itertools.islice(lines, MOST_SHOWN))


async def _drop_all(tools: ServerTools) -> None:
    """Drop the generation and its references."""
    ours, _ = await databases.list_ours(tools.gateway, tools.namer)
    for database in ours:
        await databases.drop(tools.gateway, database.name, sealed=True)
