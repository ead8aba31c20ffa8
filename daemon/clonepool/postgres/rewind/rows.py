"""Putting a small table back row by row: all are read, only those that differ are written.

It works on text, and so for columns of such types only whose text says everything; others are
emptied and copied in again (see `undo`). A row is one line: its table's OID, its place (ctid), and
an SQL tuple of its values. Rows in their old places are found by comparing sets of lines; of those
that are not, such as are alike are as good as each other, and only counted. What is put back lies
elsewhere than before, as after any UPDATE; what nobody touched stays where it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.gateway import identifier
from clonepool.postgres.rewind.errors import CannotRewindError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.pristine import Table

_SCALARS = (
    "bool", "bpchar", "bytea", "date", "float4", "float8", "int2", "int4", "int8", "interval",
    "json", "jsonb", "name", "numeric", "oid", "text", "time", "timestamp", "timestamptz",
    "timetz", "uuid", "varchar",
)  # fmt: skip
TOLD_BY_TEXT = ", ".join(f"'{name}', '_{name}'" for name in _SCALARS)
"""SQL list of types whose values come out as text and go in again bit for bit, under the settings
of a rewind; enums do too."""

LARGEST_READ_BYTES = 1024 * 1024
"""Tables of so many bytes are read at a time: the event loop does nothing else while what came is
compared. One that a lease has made larger is not read at all."""
LONGEST_TEXT_BYTES = 4 * LARGEST_READ_BYTES
"""What is read may be longer as text, and where it was stored compressed: up to this."""
_ROW_BYTES = 28
"""What a row takes beside its values."""
_MOST_ARGUMENTS = 90
"""A function of PostgreSQL has at most a hundred."""


class RowChanges(msgspec.Struct, frozen=True):
    """What makes one table hold again what it should.

    Attributes:
        delete: places of rows that should not be there.
        restore: SQL tuples of rows that are missing.
    """

    table: Table
    delete: list[str]
    restore: list[str]

    @property
    def bytes(self) -> int:
        """About how many more bytes the table takes when missing rows are put back."""
        return sum(len(row) + _ROW_BYTES for row in self.restore)

    def statements(self) -> list[str]:
        """Return the SQL that does it."""
        table, found = self.table, []
        if self.delete:
            places = ",".join(f'"{place}"' for place in self.delete)
            found.append(f"DELETE FROM ONLY {table.name} WHERE ctid = ANY ('{{{places}}}'::tid[])")
        if self.restore:
            columns = ", ".join(map(identifier, table.columns))
            values = ", ".join(f"({row})" for row in self.restore)
            found.append(
                f"INSERT INTO {table.name} ({columns}) OVERRIDING SYSTEM VALUE VALUES {values}"
            )
        return found


async def read_rows(session: Session, tables: Sequence[Table]) -> frozenset[str]:
    """Read all rows of these tables at once; nobody must be writing to them.

    Their size is looked at before anything is read, and again before anything is sent.

    Raises:
        CannotRewindError: they are larger than may be read at a time.
    """
    if not tables:
        return frozenset()
    lines = " UNION ALL ".join(map(_lines_sql, tables))
    found = await session.value(
        f"SELECT CASE WHEN {' + '.join(map(_size_sql, tables))} <= {2 * LARGEST_READ_BYTES} THEN"
        f" (SELECT CASE WHEN coalesce(sum(octet_length(line)), 0) <= {LONGEST_TEXT_BYTES}"
        f" THEN coalesce(array_agg(line), '{{}}') END FROM ({lines}) AS rows) END"
    )
    if found is None:
        names = ", ".join(table.name for table in tables)
        raise CannotRewindError(f"too much is in {names} to be read")
    return frozenset(found)


async def compare_rows(
    session: Session, tables: Sequence[Table], sizes: Mapping[int, int]
) -> list[RowChanges]:
    """Tell what is to be done to each of these tables, of which `rows` are what they should hold.

    Args:
        session: to the clone.
        tables: which; as many are read at a time as suits.
        sizes: in bytes, by OID, without TOAST, as far as they are known.

    Raises:
        CannotRewindError: a table has become too large.
        StatementError: a table is not what it was.
    """
    changes: list[RowChanges] = []
    for some in _batches(tables, sizes):
        found = await read_rows(session, some)
        wanted = frozenset[str]().union(*(table.rows for table in some))
        there, gone = _by_table(found - wanted), _by_table(wanted - found)
        changes += [_compare(table, there[table.oid], gone[table.oid]) for table in some]
    return changes


def _batches(tables: Sequence[Table], sizes: Mapping[int, int]) -> Iterator[list[Table]]:
    """Yield the tables, together as many as may be read at a time."""
    some: list[Table] = []
    total = 0
    for table in tables:
        size = max(sizes.get(table.oid, 0), table.size)
        if size > LARGEST_READ_BYTES:
            raise CannotRewindError(f"{table.name} has grown to {size} bytes")
        if some and total + size > LARGEST_READ_BYTES:
            yield some
            some, total = [], 0
        some.append(table)
        total += size
    if some:
        yield some


def _size_sql(table: Table) -> str:
    toast = f" + pg_relation_size({table.toast})" if table.toast else ""
    return f"pg_relation_size({table.oid}){toast}"


def _lines_sql(table: Table) -> str:
    """Return the query of a table's lines; `format` asks no cast that somebody may have made."""
    columns = [identifier(column) for column in table.columns]
    groups = [
        columns[first : first + _MOST_ARGUMENTS]
        for first in range(0, len(columns), _MOST_ARGUMENTS)
    ]
    values = " || ', ' || ".join(
        f"format('{', '.join(['%L'] * len(group))}', {', '.join(group)})" for group in groups
    )
    return f"SELECT format(E'{table.oid}\\t%s\\t', ctid) || {values} AS line FROM ONLY {table.name}"


def _by_table(lines: Iterable[str]) -> defaultdict[int, list[tuple[str, str]]]:
    """Take lines apart: places and rows by OID, in the order of their places."""
    found: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for line in lines:
        oid, place, row = line.split("\t", 2)
        found[int(oid)].append((place, row))
    for rows in found.values():
        rows.sort(key=lambda pair: [int(number) for number in pair[0][1:-1].split(",")])
    return found


def _compare(table: Table, there: list[tuple[str, str]], gone: list[tuple[str, str]]) -> RowChanges:
    """Leave out what is only in another place than in the template."""
    missing, delete = Counter(row for _, row in gone), []
    for place, row in there:
        if missing[row] > 0:
            missing[row] -= 1
        else:
            delete.append(place)
    return RowChanges(table, delete, list(missing.elements()))
