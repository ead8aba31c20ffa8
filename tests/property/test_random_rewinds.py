"""Whatever a template holds and whatever a lease does to its clone, the next lease sees none of it.

Templates, and what leases do to them, are made up by hypothesis; an oracle that knows nothing of
the rewind compares. `CLONEPOOL_CONSCIENCE_ROUNDS` says how many templates.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from clonepool.errors import StatementError
from clonepool.postgres import databases
from support.binaries import NEWEST, OLDEST
from support.health import ailments
from support.rewinding import Bench
from support.schemas import Schema, schemas
from support.scripts import scripts
from support.servers import Workshop, open_directory
from support.sessions import Script, running

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer

GIVEN = os.environ.get("CLONEPOOL_CONSCIENCE_ROUNDS")
EXAMPLES = int(GIVEN or "20")
SHRINKING_SECONDS = 600
"""Hypothesis takes five minutes to make a failing example small, and then shows it."""
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
LEGITIMATE = ("cannot be copied", "and it is too large", "the catalog was changed: pg_statistic")
"""Why changed rows alone may mean that a clone is recreated; too large are only unlogged tables,
and ANALYZE finds other statistics of other rows."""


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


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schema, list[Round]]:
    """Make a template, and what a few leases do to one clone of it, one after another."""
    schema = draw(schemas())
    rounds = st.builds(Round, scripts(schema), st.booleans(), st.booleans())
    return schema, draw(st.lists(rounds, min_size=1, max_size=6))


class Conscience(Bench):
    """Recycles as the daemon does: what cannot be measured or rewound is made anew."""

    is_measured = False

    async def measure(self) -> None:
        self.is_measured = False
        try:
            await super().measure()
            self.is_measured = True
        except StatementError as error:
            note(f"not measured: {error}")

    async def recycle(self, *, verify_every: int = 0) -> bool:
        try:
            return await super().recycle(verify_every=verify_every)
        except StatementError as error:
            self.why = f"the rewind failed: {error}"
            await self.renew()
            return False

    async def lease_for(self, made_up: Round) -> bool:
        """Do it, with sessions left open or not, and recycle; say whether it was rewound."""
        at_work = running(made_up.script, self.server.psql, self.server.endpoint, self.clone)
        await anyio.to_thread.run_sync(at_work.__enter__)
        try:
            assert await databases.end_sessions(self.shop.gateway, self.clone)
        finally:
            await anyio.to_thread.run_sync(at_work.__exit__, None, None, None)
        return await self.recycle(verify_every=1 if made_up.proven else 0)


@pytest.mark.timeout(SHRINKING_SECONDS + 20 * EXAMPLES)
def test_the_next_lease_sees_nothing_of_the_one_before(any_server: EmbeddedServer) -> None:
    anyio.run(skip_without_contrib, any_server)
    tally: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases())
    def look(case: tuple[Schema, list[Round]]) -> None:
        anyio.run(see_that_nothing_is_left, any_server, *case, tally)

    look()
    assert tally["rewound"] > tally["leases"] // 10, tally


async def skip_without_contrib(server: EmbeddedServer) -> None:
    """Skip where nothing can be rewound and, to be quick, a version between two others."""
    shop = await Workshop.open(server.endpoint, server.psql, "conscience")
    has_contrib = await shop.has_contrib()
    await shop.gateway.close()
    if not has_contrib:
        pytest.skip("no contrib")
    if GIVEN is None and shop.capabilities.major not in {NEWEST, OLDEST}:
        pytest.skip("make conscience looks at this version")


async def see_that_nothing_is_left(
    server: EmbeddedServer, schema: Schema, rounds: list[Round], tally: Counter[str]
) -> None:
    """Lease one clone of a template again and again, and ask the oracle each time."""
    note(schema.sql)
    shop = await Workshop.open(server.endpoint, server.psql, "conscience")
    with open_directory() as directory:
        (directory / "schema.sql").write_text(schema.sql)
        generation = await shop.build(["schema.sql"], directory, "made_up", rewindable=True)
    bench = Conscience(server, shop, generation)
    try:
        await bench.renew()
        for number, made_up in enumerate(rounds):
            note(f"-- round {number}\n{made_up.script}")
            rewound = await bench.lease_for(made_up)
            note(f"-- {'rewound' if rewound else bench.why}")
            count(tally, schema, made_up.script, rewound=rewound)
            assert_same(bench.pristine, await bench.look())
            if made_up.restarted and bench.is_measured:
                await bench.restart()
                note("-- restarted")
                assert_same(bench.pristine, await bench.look())
            if made_up.script.only_rows and OBSTACLES.isdisjoint(schema.traits):
                assert rewound or any(why in bench.why for why in LEGITIMATE), bench.why
        assert ailments(server.psql, server.endpoint, bench.clone) == []
    finally:
        await bench.drop()
        await bench.rewinder.close()
        await drop_all(shop)
        await shop.gateway.close()


async def drop_all(shop: Workshop) -> None:
    """Leave neither the generation nor a reference."""
    ours, _ = await databases.list_ours(shop.gateway, shop.namer)
    for database in ours:
        await databases.drop(shop.gateway, database.name, sealed=True)


def assert_same(expected: list[str], found: list[str]) -> None:
    """See that the oracle says the same, or show where it does not."""
    lines = difflib.unified_diff(expected, found, "template", "clone", lineterm="", n=0)
    shown = "\n".join(line[:LONGEST_SHOWN] for line in itertools.islice(lines, MOST_SHOWN))
    assert not shown, shown


def count(tally: Counter[str], schema: Schema, script: Script, *, rewound: bool) -> None:
    """Count a lease."""
    tally["leases"] += 1
    tally["rewound"] += rewound
    tally["rows only"] += script.only_rows
    tally["rows only, rewound"] += script.only_rows and rewound
    tally["large, rows only"] += script.only_rows and "large" in schema.traits
    tally["large, rows only, rewound"] += script.only_rows and "large" in schema.traits and rewound
