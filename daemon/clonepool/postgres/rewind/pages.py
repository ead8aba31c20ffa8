"""Which pages of a large table somebody wrote to, and which row versions live on them.

A fresh clone has every row in the same place (its ctid), and written by the same transaction (its
xmin), as a clone that nobody ever had: the reference. Whoever writes to a row gives its page away
twice: the page loses its bits in the visibility map, and gets a new position in the WAL. So only
pages are read that lack their bits, and of these only such as were written since the clone was
last clean. A row that is there with the ctid and the xmin it should have is that row.

VACUUM gives bits back, and so hides pages. When one was completed, its count or the age of the
table's oldest row says so. One that was given up on its way leaves nothing but a transaction that
was rolled back; then what was found must account for all that was tried.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

from clonepool.postgres.gateway import literal
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.survey import PAGE_BYTES, RAW_PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.pristine import Table

_HEADER_BYTES = 24
_LAYOUT = PAGE_BYTES | 4
"""What a page's header says of its size and layout, if its bytes stand in our order."""
HEAP_PAGES_PER_MAP_PAGE = (PAGE_BYTES - _HEADER_BYTES) * 4
"""Two bits a page: all-visible, all-frozen."""
MOST_LOOKED_AT = 32 * 1024
"""As many pages as one page of the map tells of: with more that lack bits, a copy costs less."""
_NOT_ALL_SET = re.compile(rb"[^\xff]")

Tuple = bytes
"""One row version as `(page,number)`, a tab, and its xmin."""


def page_of(row: Tuple) -> int:
    """Return the number of the page that a row version is on."""
    return int(row[1 : row.index(b",")])


def tids(rows: Iterable[Tuple]) -> str:
    """Return an SQL array of where row versions are."""
    listed = ",".join(f'"{row.partition(bytes((9,)))[0].decode()}"' for row in rows)
    return f"'{{{listed}}}'::tid[]"


async def wal_position(session: Session) -> int:
    """Return up to where the WAL is written."""
    return read_position(await session.value("SELECT pg_current_wal_insert_lsn()::text"))


def read_position(text: str) -> int:
    """Return a position in the WAL as a number."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


async def open_pages(session: Session, table: Table) -> list[int]:
    """Return the pages that lack a bit in the table's visibility map, in order.

    Raises:
        CannotRewindError: the map is not understood, or more pages lack bits than are looked at.
    """
    name = literal(table.name)
    rows = await session.rows(
        f"SELECT pg_relation_size({table.oid}) / {PAGE_BYTES} AS size,"
        f" {RAW_PAGE}({name}, 'vm', n) AS page FROM generate_series("
        f"0, pg_relation_size({table.oid}, 'vm') / {PAGE_BYTES} - 1) AS n ORDER BY n"
    )
    if not rows:
        raise CannotRewindError(f"{table.name} has lost its visibility map")
    numbers: list[int] = []
    for number, row in enumerate(rows):
        page: bytes = row["page"]
        if len(page) != PAGE_BYTES or int.from_bytes(page[18:20], "little") != _LAYOUT:
            raise CannotRewindError(f"{table.name}: pages are not laid out as expected")
        numbers += _lacking(page[_HEADER_BYTES:], number * HEAP_PAGES_PER_MAP_PAGE, row["size"])
        if len(numbers) > MOST_LOOKED_AT:
            raise CannotRewindError(f"{table.name}: more than {MOST_LOOKED_AT} pages lack bits")
    return [*numbers, *range(len(rows) * HEAP_PAGES_PER_MAP_PAGE, rows[0]["size"])]


async def written_since(
    session: Session, table: Table, numbers: Sequence[int], clean_at: int
) -> list[int]:
    """Return those of these pages that somebody wrote to after this position in the WAL."""
    if not numbers:
        return []
    listed = ",".join(map(str, numbers))
    rows = await session.rows(
        f"SELECT n, substr({RAW_PAGE}({literal(table.name)}, 'main', n), 1, 8) AS page"
        f" FROM unnest('{{{listed}}}'::bigint[]) AS n ORDER BY n"
    )
    return [row["n"] for row in rows if _position(row["page"]) > clean_at]


async def read_tuples(session: Session, table: Table, numbers: Sequence[int]) -> list[Tuple]:
    """Read which row versions live on these pages, which are in order; those beyond are empty."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    if not runs:
        return []
    return await session.lines(
        " UNION ALL ".join(
            f"SELECT ctid, xmin FROM ONLY {table.name}"
            f" WHERE ctid >= '({run[0]},0)' AND ctid < '({run[-1] + 1},0)'"
            for run in runs
        )
    )


def _position(page: bytes) -> int:
    """Return a page's position in the WAL, out of its header."""
    return (int.from_bytes(page[0:4], "little") << 32) | int.from_bytes(page[4:8], "little")


def _lacking(bits: bytes, first: int, size: int) -> list[int]:
    """Return the pages below `size` that lack a bit; the first bits are those of page `first`."""
    found = [
        first + 4 * match.start() + place
        for match in _NOT_ALL_SET.finditer(bits, 0, max(0, size - first + 3) // 4)
        for place in range(4)
        if bits[match.start()] >> 2 * place & 3 != 3  # noqa: PLR2004 - both bits
    ]
    return [number for number in found if number < size]
