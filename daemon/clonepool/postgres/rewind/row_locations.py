"""Which rows are on some pages of tables, told by their places alone.

A row in the place of an older one was written by a younger transaction. So its place, and whether
it is younger than the clone's last rewind, say all that matters; its values need not be read. What
seems younger than it is, because numbers of transactions wrapped around, is replaced by a copy of
itself.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.layout import page_of
from clonepool.postgres.rewind.relations import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.layout import Place

LARGEST_WHOLE_BYTES = 8 * 1024 * 1024
"""A table of which all pages are to be looked at may have grown by so much, and no more."""
_RUNS_AT_A_TIME, _PAGES_AT_A_TIME = 64, 128
"""So many ranges of pages, and pages, are asked for at a time: more ranges take long to plan, and
the event loop does nothing else while what comes of so many pages is compared."""
_FIRST_XID = 3
_HEADER_BYTES, _SIZE_BYTES, _PLACE_BYTES = 20, 4, 6
"""Of an array of ctids as PostgreSQL sends it: before the first, before and of each."""
_ESCAPED = 3
"""Of what COPY writes of bytes: a backslash, itself escaped, and an x."""
_NULL = b"\\N"


class Sizes(msgspec.Struct, frozen=True):
    """How large a table is now, in pages: itself, and its TOAST table."""

    pages: int
    toast_pages: int


class Piece(msgspec.Struct):
    """Some pages of one table, looked at.

    Attributes:
        pages: their numbers, None for all.
        old: places of rows that were there when the clone was last clean.
        fresh: places of rows that were written since.
    """

    table: Table
    pages: set[int] | None
    old: set[Place]
    fresh: set[Place]


class _Query:
    """Collects the values of a query: a session that stays need not plan it again for others.

    Attributes:
        values: of its parameters.
    """

    def __init__(self) -> None:
        self.values: list[object] = []

    def of(self, type_: str, value: object) -> str:
        """Return the parameter that stands for a value."""
        self.values.append(value)
        return f"${len(self.values)}::{type_}"


class Run(msgspec.Struct, frozen=True):
    """Pages of a table that follow each other; all of it when there is no `last`."""

    table: Table
    first: int
    last: int | None

    @property
    def count(self) -> int:
        """How many these are, as far as that is known."""
        return max(1, self.table.pages) if self.last is None else self.last - self.first + 1

    def condition(self, query: _Query) -> str:
        """Return SQL that is true of their rows; of a table grown too large, of none."""
        if self.last is None:
            most = self.table.size + LARGEST_WHOLE_BYTES
            return f"(SELECT pg_relation_size({self.table.oid}) <= {most})"
        first, beyond = (query.of("tid", (page, 0)) for page in (self.first, self.last + 1))
        return f"ctid >= {first} AND ctid < {beyond}"


def runs_of(table: Table, pages: Set[int] | None) -> Iterator[Run]:
    """Yield the pages of a table in runs, none of them longer than is looked at at a time."""
    if pages is None:
        yield Run(table, 0, None)
        return
    first = last = -1
    for page in sorted(pages):
        if page != last + 1 or page - first >= _PAGES_AT_A_TIME or first < 0:
            if first >= 0:
                yield Run(table, first, last)
            first = page
        last = page
    if first >= 0:
        yield Run(table, first, last)


def padded(runs: list[Run]) -> list[Run]:
    """Return these and empty ones, so that each table has 1, 2, 4, 8 ... of them.

    The query for them is then one that was planned before, more often than not.
    """
    found: list[Run] = []
    for _, of_table in groupby(runs, lambda run: run.table.oid):
        some = list(of_table)
        found += some
        empty = msgspec.structs.replace(some[-1], first=0, last=-1)
        found += [empty] * (2 ** (len(some) - 1).bit_length() - len(some))
    return found


def together(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Yield runs, together as many as are asked for at a time."""
    some: list[Run] = []
    count = 0
    for run in runs:
        if some and (len(some) >= _RUNS_AT_A_TIME or count + run.count > _PAGES_AT_A_TIME):
            yield some
            some, count = [], 0
        some.append(run)
        count += run.count
    if some:
        yield some


def read_sent(sent: bytes | None) -> list[Place]:
    """Return the elements of an array of ctids in PostgreSQL's binary format; of none, none."""
    if not sent:
        return []
    first = _HEADER_BYTES + _SIZE_BYTES
    step = _SIZE_BYTES + _PLACE_BYTES
    return [sent[at : at + _PLACE_BYTES] for at in range(first, len(sent), step)]


def read_copied(field: bytes) -> list[Place]:
    """Return the same out of what COPY writes."""
    return [] if field == _NULL else read_sent(bytes.fromhex(field[_ESCAPED:].decode()))


async def read_sizes(session: Session, database: int, tables: Iterable[Table]) -> dict[int, Sizes]:
    """Return how large tables are, by their OIDs; nobody else may be connected.

    Raises:
        CannotRewindError: somebody is.
    """
    return _sizes(await session.rows(" UNION ALL ".join(_sizes_sql(database, tables))))


async def read_pieces(
    session: Session,
    runs: list[Run],
    clean_xid: int,
    database: int = 0,
    tables: Iterable[Table] = (),
) -> tuple[list[Piece], dict[int, Sizes]]:
    """Look at some pages of tables, and ask in the same round trip how large tables are.

    Args:
        session: to the clone.
        runs: which pages.
        clean_xid: the first transaction that came after the clone was last clean.
        database: the clone's OID, where sizes are asked for.
        tables: of which.

    Raises:
        CannotRewindError: sizes are asked for, and somebody else is connected.
    """
    xid = max(clean_xid % 2**32, _FIRST_XID)
    runs = padded(runs)
    asked = _Query()
    age = asked.of("xid", xid)
    parts = [
        f"SELECT {number}::bigint AS oid,"
        f" array_send(array_agg(ctid) FILTER (WHERE age(xmin) > age({age}))) AS old,"
        f" array_send(array_agg(ctid) FILTER (WHERE age(xmin) <= age({age}))) AS fresh,"
        f" NULL::bigint AS pages, NULL::bigint AS toast_pages"
        f" FROM ONLY {run.table.name} WHERE {run.condition(asked)}"
        for number, run in enumerate(runs)
    ]
    parts += _sizes_sql(database, tables) if database else []
    pieces, sizes = [], []
    for row in await session.rows(" UNION ALL ".join(parts), *asked.values):
        if row["pages"] is not None:
            sizes.append(row)
            continue
        run = runs[row["oid"]]
        numbers = None if run.last is None else set(range(run.first, run.last + 1))
        places = set(read_sent(row["old"])), set(read_sent(row["fresh"]))
        pieces.append(Piece(run.table, numbers, *places))
    return pieces, _sizes(sizes) if database else {}


def _sizes_sql(database: int, tables: Iterable[Table]) -> list[str]:
    """Return queries of who is connected and how large these tables are, each of one row."""
    nothing = "NULL::bytea AS old, NULL::bytea AS fresh"
    backends = f"pg_stat_get_db_numbackends({database})::bigint AS pages"
    asked = [f"SELECT 0::bigint AS oid, {nothing}, {backends}, 0::bigint AS toast_pages"]
    for table in tables:
        toast = f"pg_relation_size({table.toast}) / {PAGE_BYTES}" if table.toast else "0::bigint"
        own = f"pg_relation_size({table.oid}) / {PAGE_BYTES}"
        asked.append(f"SELECT {table.oid}, {nothing}, {own}, {toast}")
    return asked


def _sizes(rows: Iterable[dict[str, Any]]) -> dict[int, Sizes]:
    found = {row["oid"]: Sizes(row["pages"], row["toast_pages"]) for row in rows}
    if found.pop(0).pages != 1:
        raise CannotRewindError("somebody else is connected")
    return found


async def read_places(session: Session, runs: list[Run]) -> dict[tuple[int, int], set[Place]]:
    """Return where there are rows, by the OID of the table and the number of the page."""
    runs = padded(runs)
    asked = _Query()
    sql = " UNION ALL ".join(
        f"SELECT {number} AS run, array_send(array_agg(ctid)) AS places"
        f" FROM ONLY {run.table.name} WHERE {run.condition(asked)}"
        for number, run in enumerate(runs)
    )
    found: dict[tuple[int, int], set[Place]] = {}
    for row in await session.rows(sql, *asked.values):
        run = runs[row["run"]]
        if run.last == run.first:
            found[run.table.oid, run.first] = set(read_sent(row["places"]))
            continue
        last = run.last if run.last is not None else run.table.pages - 1
        found |= {(run.table.oid, page): set() for page in range(run.first, last + 1)}
        for place in read_sent(row["places"]):
            found.setdefault((run.table.oid, page_of(place)), set()).add(place)
    return found
