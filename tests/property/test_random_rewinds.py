"""Whatever a template has and a lease does to its clone, the next lease gets the template's state.

Templates and the work of leases are drawn by hypothesis; an oracle that knows nothing of the rewind
compares. `make random-rewinds` does the same for thousands of rounds.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from support import binaries, lanes
from support.random_rewinds.lane import Failure, Lane, Outcome, run_lane
from support.random_rewinds.tally import Tally
from support.recycle_rounds import Round, may_be_recreated, must_be_rewound, open_recycle_harness
from support.schemas import Schema, schemas
from support.scripts import scripts
from support.servers import ROOT, ServerTools

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer

EXAMPLES = lanes.rounds(standard=5, slow=60)
SHRINKING_SECONDS = 600
"""Hypothesis takes five minutes to make a failing example small, and then shows it."""
ROUNDS = lanes.rounds(standard=30, slow=400)
"""On clones that are kept."""
SECONDS = 1200.0
pytestmark = pytest.mark.long


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schema, list[Round]]:
    """Make a template, and what a few leases do to one clone of it, one after another."""
    schema = draw(schemas())
    rounds = st.builds(Round, scripts(schema), st.booleans(), st.booleans())
    return schema, draw(st.lists(rounds, min_size=1, max_size=6))


@pytest.fixture
def rewinding_server(any_server: EmbeddedServer) -> EmbeddedServer:
    """Return a server on which clones are rewound."""
    _, has_contrib = anyio.run(look_at, any_server)
    if not has_contrib:
        pytest.skip("no contrib")
    return any_server


async def look_at(server: EmbeddedServer) -> tuple[int, bool]:
    """Return the version, and whether clones can be rewound there."""
    tools = await ServerTools.open(server.endpoint, server.psql, "trial")
    try:
        return tools.capabilities.major, await tools.has_contrib()
    finally:
        await tools.gateway.close()


@pytest.mark.timeout(SHRINKING_SECONDS + 20 * EXAMPLES)
def test_the_next_lease_sees_nothing_of_the_one_before(rewinding_server: EmbeddedServer) -> None:
    tally: Counter[bool] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases())
    def look(case: tuple[Schema, list[Round]]) -> None:
        anyio.run(check_contents, rewinding_server, *case, tally)

    look()
    assert tally[True] > tally.total() // 10, tally


async def check_contents(
    server: EmbeddedServer, schema: Schema, rounds: list[Round], tally: Counter[bool]
) -> None:
    """Lease one clone of a template again and again, and ask the oracle each time."""
    note(schema.sql)
    async with open_recycle_harness(server, schema.sql) as harness:
        for number, planned in enumerate(rounds):
            note(f"-- round {number}\n{planned.script}")
            rewound = await harness.run_round(planned)
            note(f"-- {'rewound' if rewound else harness.why} {harness.unmeasured}")
            tally[rewound] += 1
            await harness.check_contents()
            if planned.restarted and harness.is_measured:
                await harness.restart()
                note("-- restarted")
                await harness.check_contents()
            if must_be_rewound(schema, planned.script):
                assert rewound or may_be_recreated(harness.why), harness.why
        await harness.check_integrity()


@pytest.mark.timeout(SECONDS + 100)
def test_a_clone_that_was_rewound_many_times_is_still_its_template(
    rewinding_server: EmbeddedServer,
) -> None:
    major, _ = anyio.run(look_at, rewinding_server)
    seed = str(random.SystemRandom().randrange(2**32))
    tally, failures = Tally(), []

    def report(report_: Outcome | Failure) -> None:
        if isinstance(report_, Failure):
            failures.append(report_)
        else:
            tally.add(report_)

    anyio.run(run_lane, rewinding_server, Lane(major, seed, ROUNDS, SECONDS), report)
    for failure in failures:
        pytest.fail(f"seed {seed}, template {failure.number}\n{failure.history}\n{failure.message}")
    # Of few templates one may be such that its leases change the schema all the time; the long run
    # wants half.
    assert tally.on_old_clones >= tally.rounds // 4


@pytest.mark.timeout(300)
def test_the_long_run_ends_when_it_has_done_its_rounds_and_says_how_many() -> None:
    command = [sys.executable, "-m", "support.random_rewinds", "--rounds", "4", "--minutes", "4"]
    command += ["--version", str(next(iter(binaries.rewinding())))]
    places = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = -(-4 // (os.cpu_count() or 1)) * (os.cpu_count() or 1)
    assert f"\n{wanted} rounds in" in done.stdout
