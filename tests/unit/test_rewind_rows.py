"""Small tables put back row by row: what is deleted, what is written, what is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clonepool.postgres.rewind.pristine import Table
from clonepool.postgres.rewind.rows import compare_rows
from clonepool.postgres.rewind.undo import MOST_OPEN_REWINDS, MOST_OPEN_TABLES, SmallTables

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session

pytestmark = pytest.mark.anyio


class Answering:
    """A session that answers every query with the same rows."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    async def value(self, _: str) -> list[str]:
        return self._lines


def line(oid: int, place: int, row: str) -> str:
    return f"{oid}\t(0,{place})\t{row}"


def table(oid: int, rows: list[str]) -> Table:
    return Table(
        oid=oid, schema="s", relation=f"t{oid}", columns=["a"], obstacle="", toast=0, size=8192,
        populated=True,
        readable=True, paged=False, toasted=False, by_row=True,
        rows=frozenset(line(oid, place, row) for place, row in enumerate(rows, 1)),
    )  # fmt: skip


async def statements(tables: list[Table], found: list[str]) -> list[str]:
    session = cast("Session", Answering(found))
    return [sql for one in await compare_rows(session, tables, {}) for sql in one.statements()]


async def test_a_table_that_holds_what_it_should_is_not_written_to() -> None:
    one = table(1, ["'a'", "'b'"])
    assert await statements([one], sorted(one.rows)) == []


async def test_rows_that_only_moved_are_left_where_they_are() -> None:
    one = table(1, ["'a'", "'b'"])
    assert await statements([one], [line(1, 7, "'b'"), line(1, 9, "'a'")]) == []


async def test_only_rows_that_differ_are_written_and_in_their_old_order() -> None:
    one, other = table(1, ["'a'", "'b'", "'c'"]), table(2, ["'x\ty'"])
    found = [line(1, 2, "'b'"), line(1, 12, "'new'"), line(1, 4, "'newer'")]
    assert await statements([one, other], found) == [
        """DELETE FROM ONLY "s"."t1" WHERE ctid = ANY ('{"(0,4)","(0,12)"}'::tid[])""",
        """INSERT INTO "s"."t1" ("a") OVERRIDING SYSTEM VALUE VALUES ('a'), ('c')""",
        """INSERT INTO "s"."t2" ("a") OVERRIDING SYSTEM VALUE VALUES ('x\ty')""",
    ]


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")), st.randoms())
def test_after_it_the_table_holds_as_many_of_each_row_as_before(
    wanted: list[str], found: list[str], chance: Any
) -> None:
    import anyio  # noqa: PLC0415 - hypothesis calls synchronous functions only

    places = chance.sample(range(1, 100), len(found))
    there = dict(zip(places, found, strict=True))
    session = cast("Session", Answering([line(1, place, row) for place, row in there.items()]))
    (changes,) = anyio.run(compare_rows, session, [table(1, wanted)], {})
    for place in changes.delete:
        del there[int(place[3:-1])]
    assert sorted([*there.values(), *changes.restore]) == sorted(wanted)
    assert not set(changes.restore) & {found[places.index(int(p[3:-1]))] for p in changes.delete}


def test_a_few_small_tables_stay_open_for_a_while() -> None:
    small = SmallTables()
    few = [table(oid, []) for oid in range(1, MOST_OPEN_TABLES + 1)]
    for _ in range(MOST_OPEN_REWINDS - 1):
        assert small.leave_open(few, set()) == []
        assert list(small.open.values()) == few
    assert small.leave_open(few, set()) == few
    assert (small.open, small.rewinds) == ({}, 0)
    assert len(small.leave_open([*few, table(99, [])], set())) == MOST_OPEN_TABLES + 1


def test_a_small_table_that_has_grown_is_vacuumed_at_once_and_no_other() -> None:
    small = SmallTables()
    one, grown = table(1, []), table(2, [])
    assert small.leave_open([one, grown], {2}) == [grown]
    assert list(small.open) == [1]
