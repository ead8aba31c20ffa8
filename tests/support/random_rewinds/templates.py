"""The templates of a run, with what leases do to their clones, drawn by a seed."""

from __future__ import annotations

import random
from typing import NamedTuple

from support import kitchen_sink
from support.random_rewinds.drawing import drawn
from support.recycle_rounds import OBSTACLES, Round
from support.schemas import Schema, schemas
from support.scripts import scripts
from support.sessions import End, Script, Session

ROUNDS = 60
"""Of one template; most of them on a clone that was rewound before."""
_DEFINING_FROM, _DEFINING_SHARE = 40, 0.25
"""Round from which on some scripts have DDL, and their share; most such clones are recreated."""
_PROVEN_SHARE, _RESTARTED_SHARE = 0.2, 0.04
_KITCHEN_SINK_EVERY = 5
_CANDIDATES = 8


class Template(NamedTuple):
    """A template, and what one lease after another does to a clone of it."""

    schema: Schema
    rounds: list[Round]


def draw_template(seeded: str, number: int) -> Template:
    """Return the template of that number, the same one for the same seed.

    One in five is the kitchen sink, which has one of everything. Three in five have nothing that
    prevents putting rows back, so that their clones are rewound many times.
    """
    name = f"{seeded}/{number}"
    choice = random.Random(name)
    if number % _KITCHEN_SINK_EVERY == 0:
        return Template(
            Schema(kitchen_sink.SCHEMA, ()), _rounds(_kitchen_sink_scripts(choice), [], choice)
        )
    candidates = drawn(schemas(), _CANDIDATES, name)
    plain = [each for each in candidates if OBSTACLES.isdisjoint(each.features)]
    schema = choice.choice(plain if plain and number % _KITCHEN_SINK_EVERY != 1 else candidates)
    of_rows = drawn(scripts(schema, only_rows=True), ROUNDS, f"{name}/rows")
    defining = drawn(scripts(schema, only_rows=False), ROUNDS // 4, f"{name}/definitions")
    return Template(schema, _rounds(of_rows, defining, choice))


def _rounds(of_rows: list[Script], defining: list[Script], choice: random.Random) -> list[Round]:
    found = []
    for number, script in enumerate(of_rows):
        is_late = number >= _DEFINING_FROM
        if is_late and defining and choice.random() < _DEFINING_SHARE:
            script = defining.pop()  # noqa: PLW2901 - it takes the other's place
        proven = choice.random() < _PROVEN_SHARE
        found.append(Round(script, proven, choice.random() < _RESTARTED_SHARE))
    return found


def _kitchen_sink_scripts(choice: random.Random) -> list[Script]:
    """Draw what leases do to the kitchen sink: a few things each, in any order."""
    undone = list(kitchen_sink.REWINDABLE.values())
    other = [*kitchen_sink.NOT_REWINDABLE.values(), *kitchen_sink.EITHER.values()]
    found = []
    for number in range(ROUNDS):
        some = choice.sample(undone, choice.randint(1, 4))
        defines = number >= _DEFINING_FROM and choice.random() < _DEFINING_SHARE
        some += choice.sample(other, 1) if defines else []
        choice.shuffle(some)
        statements = tuple(f"{sql};" for sql in some)
        found.append(Script((Session(statements, End.LEFT),), only_rows=not defines))
    return found
