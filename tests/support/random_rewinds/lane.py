"""The rounds on one server: one template after another, until the limit of rounds or time."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

from support.random_rewinds.kinds import kinds_of
from support.random_rewinds.templates import draw_template
from support.recycle_rounds import (
    CloneDiffersError,
    RecycleHarness,
    may_be_recreated,
    must_be_rewound,
    open_recycle_harness,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.embedded.server import EmbeddedServer
    from support.random_rewinds.templates import Template
    from support.recycle_rounds import Round

SOUND_EVERY = 10
"""Rounds after which the integrity of a clone is checked, too."""
MOST_FAILURES = 3
"""Failures after which a lane ends; each ends its template."""


class Outcome(NamedTuple):
    """How one round ended.

    Attributes:
        kinds: of damage, by name.
        rewound: whether the clone was rewound; otherwise it was recreated.
        before: how often that clone had been rewound before.
    """

    kinds: tuple[str, ...]
    rewound: bool
    before: int


class Failure(NamedTuple):
    """What is needed to reproduce a failure.

    Attributes:
        number: of the template.
        history: its SQL and what was done to the clone since it was made.
        message: what is wrong.
    """

    number: int
    history: str
    message: str


class Lane(NamedTuple):
    """The work on one server.

    Attributes:
        major: its version.
        seed: of everything that is drawn.
        rounds: how many.
        seconds: how long at most; rounds that were begun are ended.
        first: the number of its first template.
        step: distance from one number to the next; other lanes do the others.
        only: whether the first is the only one.
    """

    major: int
    seed: str
    rounds: int
    seconds: float
    first: int = 0
    step: int = 1
    only: bool = False


async def run_lane(
    server: EmbeddedServer, lane: Lane, report: Callable[[Outcome | Failure], None]
) -> None:
    """Run the rounds, and report the outcome of each."""
    left, until, failures = lane.rounds, time.monotonic() + lane.seconds, 0
    numbers = [lane.first] if lane.only else itertools.count(lane.first, lane.step)
    for number in numbers:
        template = draw_template(f"{lane.seed}/{lane.major}", number)
        rounds = template.rounds[:left]
        failure = await _run_template(
            server, template._replace(rounds=rounds), number, until, report
        )
        left -= len(rounds)
        if failure is not None:
            report(failure)
            failures += 1
        if not left or time.monotonic() > until or failures == MOST_FAILURES:
            return


async def _run_template(
    server: EmbeddedServer,
    template: Template,
    number: int,
    until: float,
    report: Callable[[Outcome | Failure], None],
) -> Failure | None:
    """Run the rounds of one template; return the failure, if any."""
    history: list[str] = []
    try:
        async with open_recycle_harness(server, template.schema.sql) as harness:
            for position, planned in enumerate(template.rounds):
                if time.monotonic() > until:
                    return None
                history = history if harness.rewinds else []
                history.append(f"-- round {position}\n{planned.script}")
                report(await _lease(harness, template, planned))
                if position % SOUND_EVERY == SOUND_EVERY - 1:
                    await harness.check_integrity()
    except (AssertionError, OSError, RuntimeError, Exception) as error:  # noqa: BLE001 - told
        message = str(error) if isinstance(error, CloneDiffersError) else repr(error)
        return Failure(number, "\n".join([template.schema.sql, *history]), message)
    return None


async def _lease(harness: RecycleHarness, template: Template, planned: Round) -> Outcome:
    """Run one round, and check that the clone equals the template again."""
    before = harness.rewinds
    rewound = await harness.run_round(planned)
    await harness.check_contents()
    if planned.restarted and harness.is_measured:
        await harness.restart()
        await harness.check_contents()
    if not rewound and must_be_rewound(template.schema, planned.script) and template.schema.tables:
        assert may_be_recreated(harness.why), harness.why
    return Outcome(tuple(kinds_of(planned.script)), rewound, before)
