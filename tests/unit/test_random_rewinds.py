"""The long random run draws the same for the same seed, and covers every kind of damage."""

from __future__ import annotations

from collections import Counter

import pytest

from support.damage import DAMAGE, DAMAGE_THAT_DEFINES
from support.random_rewinds.drawing import drawn
from support.random_rewinds.kinds import ENDS, KINDS, kinds_of
from support.random_rewinds.lane import Outcome
from support.random_rewinds.tally import Tally
from support.random_rewinds.templates import draw_template
from support.schemas import schemas
from support.sessions import End, Script, Session


def of(*statements: str, end: End = End.LEFT) -> Script:
    return Script((Session(statements, end),), only_rows=True)


def test_the_same_seed_draws_the_same() -> None:
    assert drawn(schemas(), 3, "a") == drawn(schemas(), 3, "a")
    assert drawn(schemas(), 3, "a") != drawn(schemas(), 3, "b")
    assert draw_template("a", 5) == draw_template("a", 5)


def test_the_damage_that_has_a_name_is_of_every_kind() -> None:
    fields = dict.fromkeys("cwnqsi", "x") | {"t": "m.t0"}
    met: Counter[str] = Counter()
    for damage in (*DAMAGE.values(), *DAMAGE_THAT_DEFINES.values()):
        sessions = tuple(Session((p.sql.format(**fields),), p.end) for p in damage.parts)
        met.update(kinds_of(Script(sessions, only_rows=True, together=damage.together)))
    assert met.keys() >= {*KINDS, *ENDS, "several sessions", "sessions at the same time"}


@pytest.mark.parametrize(
    ("script", "kinds"),
    [
        (of("SELECT nextval('m.free');"), ["nextval"]),
        (of("SET synchronous_commit = off;", "BEGIN;", end=End.KILLED),
         ["synchronous_commit = off", "a session killed"]),
        (of("TRUNCATE m.t0 RESTART IDENTITY CASCADE;"),
         ["TRUNCATE", "TRUNCATE … RESTART IDENTITY"]),
        (of("VACUUM FULL m.t0;"), ["VACUUM FULL"]),
        (of("REINDEX TABLE pg_catalog.pg_class;"), ["REINDEX of a catalog"]),
        (of("SELECT 1;"), ["reads and whatever else"]),
    ],
)  # fmt: skip
def test_kinds_are_told_by_the_text(script: Script, kinds: list[str]) -> None:
    assert kinds_of(script) == kinds


def test_the_tally_tells_rounds_on_clones_that_were_rewound_before() -> None:
    tally = Tally()
    for before, rewound in ((0, True), (1, True), (29, True), (30, False)):
        tally.add(Outcome(("DELETE",), rewound, before))
    assert (tally.rounds, tally.rewound, tally.recreated) == (4, 3, 1)
    assert tally.on_old_clones == 3
    by_kind, by_age = tally.tables()
    assert by_kind.row_count == 1
    assert list(by_age.columns[1].cells) == ["1", "1", "1", "1"]
