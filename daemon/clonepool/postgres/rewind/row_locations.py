"""Reads at which ctids there are rows, on some pages of tables.

A row at the ctid of an older one was written by a younger transaction. So a row's ctid, and whether
its xmin is younger than the clone's last clean state, tell all that a rewind has to know; no values
are read. A row that seems younger than it is, because transaction numbers have wrapped around, is
replaced by a copy of itself.
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

    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.layout import Ctid
    from clonepool.postgres.session import Session

LARGEST_WHOLE_BYTES = 8 * 1024 * 1024
"""Most bytes by which a table may have grown for all of its pages to be read."""
_RANGES_AT_A_TIME, _PAGES_AT_A_TIME = 64, 128
"""Most page ranges, and most pages, of one query: more ranges take long to plan, and the event loop
does nothing else while the rows of that many pages are compared."""
_FIRST_XID = 3
"""Least number of a normal transaction (FirstNormalTransactionId)."""
_HEADER_BYTES, _LENGTH_BYTES, _CTID_BYTES = 20, 4, 6
"""Of an array of ctids in PostgreSQL's binary format: its header, an element's length, an
element."""
_COPY_PREFIX = 3
"""Characters before the hexadecimal digits of a bytea in what COPY writes: two backslashes, an
x."""
_NULL = b"\\N"


class Sizes(msgspec.Struct, frozen=True):
    """The sizes of a table and of its TOAST table, in pages."""

    pages: int
    toast_pages: int


class PageRange(msgspec.Struct, frozen=True):
    """Consecutive pages of a table; all of them if `last` is None."""

    table: Table
    first: int
    last: int | None

    @property
    def count(self) -> int:
        """How many pages these are, as far as is known."""
        return max(1, self.table.pages) if self.last is None else self.last - self.first + 1

    def condition(self, parameters: _Parameters) -> str:
        """Return SQL that is true of the rows on these pages.

        If all pages are meant and the table has grown by too much, it is true of no row.
        """
        if self.last is None:
            most = self.table.size + LARGEST_WHOLE_BYTES
            return f"(SELECT pg_relation_size({self.table.oid}) <= {most})"
        first, end = (parameters.add("tid", (page, 0)) for page in (self.first, self.last + 1))
        return f"ctid >= {first} AND ctid < {end}"


class PageRows(msgspec.Struct):
    """The rows on some pages of one table.

    Attributes:
        table: the table.
        pages: the numbers of the pages; None for all.
        old: ctids of old rows.
        fresh: ctids of fresh rows.
    """

    table: Table
    pages: set[int] | None
    old: set[Ctid]
    fresh: set[Ctid]


class _Parameters:
    """Collects the parameters of a query, so that its text is the same for other values."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def add(self, type_: str, value: object) -> str:
        """Add a value, and return its parameter."""
        self.values.append(value)
        return f"${len(self.values)}::{type_}"


def page_ranges(table: Table, pages: Set[int] | None) -> Iterator[PageRange]:
    """Yield pages of a table as ranges, none longer than one query reads; None for all pages."""
    if pages is None:
        yield PageRange(table, 0, None)
        return
    first = last = -1
    for page in sorted(pages):
        if page != last + 1 or page - first >= _PAGES_AT_A_TIME or first < 0:
            if first >= 0:
                yield PageRange(table, first, last)
            first = page
        last = page
    if first >= 0:
        yield PageRange(table, first, last)


def batched(ranges: Iterable[PageRange]) -> Iterator[list[PageRange]]:
    """Yield ranges in groups that are read by one query each."""
    some: list[PageRange] = []
    count = 0
    for pages in ranges:
        if some and (len(some) >= _RANGES_AT_A_TIME or count + pages.count > _PAGES_AT_A_TIME):
            yield some
            some, count = [], 0
        some.append(pages)
        count += pages.count
    if some:
        yield some


def _padded(ranges: list[PageRange]) -> list[PageRange]:
    """Add empty ranges until each table has 1, 2, 4, 8 ... of them.

    So the query is likely to have the text of one that was prepared before.
    """
    found: list[PageRange] = []
    for _, of_table in groupby(ranges, lambda pages: pages.table.oid):
        some = list(of_table)
        found += some
        empty = msgspec.structs.replace(some[-1], first=0, last=-1)
        found += [empty] * (2 ** (len(some) - 1).bit_length() - len(some))
    return found


def decode_ctids(array: bytes | None) -> list[Ctid]:
    """Return the elements of an array of ctids in PostgreSQL's binary format; none for NULL."""
    if not array:
        return []
    first = _HEADER_BYTES + _LENGTH_BYTES
    step = _LENGTH_BYTES + _CTID_BYTES
    return [array[at : at + _CTID_BYTES] for at in range(first, len(array), step)]


def decode_copied_ctids(field: bytes) -> list[Ctid]:
    """Return the elements of such an array from what COPY writes."""
    return [] if field == _NULL else decode_ctids(bytes.fromhex(field[_COPY_PREFIX:].decode()))


async def read_sizes(session: Session, database: int, tables: Iterable[Table]) -> dict[int, Sizes]:
    """Return the sizes of tables, by their OIDs.

    Raises:
        CannotRewindError: there are other sessions on the database.
    """
    return _sizes(await session.rows(" UNION ALL ".join(_sizes_sql(database, tables))))


async def read_page_rows(
    session: Session,
    ranges: list[PageRange],
    clean_xid: int,
    database: int = 0,
    tables: Iterable[Table] = (),
) -> tuple[list[PageRows], dict[int, Sizes]]:
    """Read the rows on some pages and, in the same round trip, the sizes of tables.

    Args:
        session: to the clone.
        ranges: the pages.
        clean_xid: the first transaction after the clone was last clean.
        database: the clone's OID; 0 if no sizes are wanted.
        tables: whose sizes are wanted.

    Raises:
        CannotRewindError: sizes are wanted, and there are other sessions.
    """
    ranges = _padded(ranges)
    parameters = _Parameters()
    xid = parameters.add("xid", max(clean_xid % 2**32, _FIRST_XID))
    queries = [
        f"SELECT {number}::bigint AS oid,"
        f" array_send(array_agg(ctid) FILTER (WHERE age(xmin) > age({xid}))) AS old,"
        f" array_send(array_agg(ctid) FILTER (WHERE age(xmin) <= age({xid}))) AS fresh,"
        f" NULL::bigint AS pages, NULL::bigint AS toast_pages"
        f" FROM ONLY {pages.table.name} WHERE {pages.condition(parameters)}"
        for number, pages in enumerate(ranges)
    ]
    queries += _sizes_sql(database, tables) if database else []
    found, sizes = [], []
    for row in await session.rows(" UNION ALL ".join(queries), *parameters.values):
        if row["pages"] is not None:
            sizes.append(row)
            continue
        pages = ranges[row["oid"]]
        numbers = None if pages.last is None else set(range(pages.first, pages.last + 1))
        ctids = set(decode_ctids(row["old"])), set(decode_ctids(row["fresh"]))
        found.append(PageRows(pages.table, numbers, *ctids))
    return found, _sizes(sizes) if database else {}


def _sizes_sql(database: int, tables: Iterable[Table]) -> list[str]:
    """Return queries of how many backends are connected, and of the tables' sizes, one row each."""
    nothing = "NULL::bytea AS old, NULL::bytea AS fresh"
    backends = f"pg_stat_get_db_numbackends({database})::bigint AS pages"
    queries = [f"SELECT 0::bigint AS oid, {nothing}, {backends}, 0::bigint AS toast_pages"]
    for table in tables:
        toast = f"pg_relation_size({table.toast}) / {PAGE_BYTES}" if table.toast else "0::bigint"
        own = f"pg_relation_size({table.oid}) / {PAGE_BYTES}"
        queries.append(f"SELECT {table.oid}, {nothing}, {own}, {toast}")
    return queries


def _sizes(rows: Iterable[dict[str, Any]]) -> dict[int, Sizes]:
    found = {row["oid"]: Sizes(row["pages"], row["toast_pages"]) for row in rows}
    if found.pop(0).pages != 1:
        raise CannotRewindError("another session is connected")
    return found


async def read_ctids(session: Session, ranges: list[PageRange]) -> dict[tuple[int, int], set[Ctid]]:
    """Return the ctids of all rows on some pages, by the table's OID and the page number."""
    ranges = _padded(ranges)
    parameters = _Parameters()
    sql = " UNION ALL ".join(
        f"SELECT {number} AS number, array_send(array_agg(ctid)) AS ctids"
        f" FROM ONLY {pages.table.name} WHERE {pages.condition(parameters)}"
        for number, pages in enumerate(ranges)
    )
    found: dict[tuple[int, int], set[Ctid]] = {}
    for row in await session.rows(sql, *parameters.values):
        pages = ranges[row["number"]]
        if pages.last == pages.first:
            found[pages.table.oid, pages.first] = set(decode_ctids(row["ctids"]))
            continue
        last = pages.last if pages.last is not None else pages.table.pages - 1
        found |= {(pages.table.oid, page): set() for page in range(pages.first, last + 1)}
        for ctid in decode_ctids(row["ctids"]):
            found.setdefault((pages.table.oid, page_of(ctid)), set()).add(ctid)
    return found
