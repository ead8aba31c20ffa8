"""The rounds on one server: template after template, until there were enough or time is up."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

from support.random_rewinds.kinds import kinds_of
from support.random_rewinds.templates import draw_template
from support.trials import NotTheSameError, Trial, has_reason, open_trial, ought_to_be_rewound

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.embedded.server import EmbeddedServer
    from support.random_rewinds.templates import Template
    from support.trials import Round

SOUND_EVERY = 10
"""Rounds after which a clone is also looked at below its rows."""
MOST_FAILURES = 3
"""After which a lane ends; each ends its template."""


class Outcome(NamedTuple):
    """How one round ended.

    Attributes:
        kinds: of damage, by name.
        rewound: whether the clone was rewound, else it was made anew.
        before: how often that clone had been rewound before.
    """

    kinds: tuple[str, ...]
    rewound: bool
    before: int


class Failure(NamedTuple):
    """What a person needs to see it happen again.

    Attributes:
        number: of the template.
        history: its SQL and what was done to the clone since it was made.
        message: what is wrong.
    """

    number: int
    history: str
    message: str


class Lane(NamedTuple):
    """What is to be done on one server.

    Attributes:
        major: its version.
        seed: of everything that is drawn.
        rounds: how many.
        seconds: how long at most; rounds that were begun are ended.
        first: the number of its first template.
        step: how many it goes on from one to the next, as others do those in between.
        only: whether that one is all.
    """

    major: int
    seed: str
    rounds: int
    seconds: float
    first: int = 0
    step: int = 1
    only: bool = False


async def run_lane(
    server: EmbeddedServer, lane: Lane, tell: Callable[[Outcome | Failure], None]
) -> None:
    """Go through the rounds, and tell how each ended."""
    left, until, failures = lane.rounds, time.monotonic() + lane.seconds, 0
    numbers = [lane.first] if lane.only else itertools.count(lane.first, lane.step)
    for number in numbers:
        template = draw_template(f"{lane.seed}/{lane.major}", number)
        rounds = template.rounds[:left]
        failure = await _go_through(server, template._replace(rounds=rounds), number, until, tell)
        left -= len(rounds)
        if failure is not None:
            tell(failure)
            failures += 1
        if not left or time.monotonic() > until or failures == MOST_FAILURES:
            return


async def _go_through(
    server: EmbeddedServer,
    template: Template,
    number: int,
    until: float,
    tell: Callable[[Outcome | Failure], None],
) -> Failure | None:
    """Do one template's rounds; return what went wrong, None if nothing did."""
    history: list[str] = []
    try:
        async with open_trial(server, template.schema.sql) as trial:
            for position, made_up in enumerate(template.rounds):
                if time.monotonic() > until:
                    return None
                history = history if trial.rewinds else []
                history.append(f"-- round {position}\n{made_up.script}")
                tell(await _lease(trial, template, made_up))
                if position % SOUND_EVERY == SOUND_EVERY - 1:
                    await trial.see_that_it_is_sound()
    except (AssertionError, OSError, RuntimeError, Exception) as error:  # noqa: BLE001 - told
        message = str(error) if isinstance(error, NotTheSameError) else repr(error)
        return Failure(number, "\n".join([template.schema.sql, *history]), message)
    return None


async def _lease(trial: Trial, template: Template, made_up: Round) -> Outcome:
    """Let one lease do its work, and see that the clone is the template again."""
    before = trial.rewinds
    rewound = await trial.lease_for(made_up)
    await trial.see_that_nothing_is_left()
    if made_up.restarted and trial.is_measured:
        await trial.restart()
        await trial.see_that_nothing_is_left()
    if (
        not rewound
        and ought_to_be_rewound(template.schema, made_up.script)
        and template.schema.tables
    ):
        assert has_reason(trial.why), trial.why
    return Outcome(tuple(kinds_of(made_up.script)), rewound, before)
