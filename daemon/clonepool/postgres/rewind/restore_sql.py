"""The SQL that puts rows and sequences back, and its results.

One statement puts back up to `_TABLES_AT_A_TIME` tables: it deletes the rows that should not be
there and counts them, then inserts the missing rows in batches, each of which returns the new
ctids.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.layout import Batch, ctid_text
from clonepool.postgres.rewind.row_locations import decode_copied_ctids
from clonepool.postgres.rewind.walinspect import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.layout import Ctid, Difference
    from clonepool.postgres.session import Session

_SMALLEST_BATCH = 16
"""Least number of rows in a batch; when one of them is missing later, all are put back again."""
_MOST_BATCHES = 32
"""Most batches of one table in one rewind; with more rows, the batches are larger."""
_TABLES_AT_A_TIME = 64
"""Most tables that one statement puts back."""
_FIELDS = 3
_DELETED, _INSERTED, _SEQUENCES, _END = b"deleted", b"inserted", b"set", b"end"
"""First fields of the lines that a statement returns."""


class TableRepair(msgspec.Struct, frozen=True):
    """What has to be done to one table.

    Attributes:
        table: the table.
        difference: ctids of rows to be deleted, and original ctids of rows to be inserted.
        texts: of the rows to be inserted, by their original ctids.
    """

    table: Table
    difference: Difference
    texts: Mapping[Ctid, str]

    @property
    def bytes(self) -> int:
        """Approximate size of the rows to be inserted."""
        return sum(len(self.texts[ctid]) for ctid in self.difference.restore)


class PutBack(msgspec.Struct, frozen=True):
    """What was done.

    Attributes:
        batches: where the inserted rows are, by the table's OID.
        position: in the WAL, after all of it.
        xid: the transaction's number.
    """

    batches: dict[int, list[Batch]]
    position: int
    xid: int


async def put_back(
    session: Session,
    database: int,
    repairs: list[TableRepair],
    sequences: Mapping[int, tuple[int, bool]],
) -> PutBack:
    """Put tables and sequences back, in one transaction; sequences are not transactional.

    Args:
        session: to the clone.
        database: its OID.
        repairs: of tables.
        sequences: last_value and is_called by OID. After setval, the next nextval is logged.

    Raises:
        CannotRewindError: the rows differ from those that were read, or there are other sessions.
        StatementError, ServerUnavailableError: the clone is in an unknown state.
    """
    batches: dict[int, list[Batch]] = {}
    groups = list(_groups(repairs)) or [[]]
    if len(groups) > 1:
        await session.execute("BEGIN")
    position = xid = 0
    for number, some in enumerate(groups):
        parts = [_TablePart(repair) for repair in some]
        is_last = number == len(groups) - 1
        lines = await session.lines(_sql(database, parts, sequences if is_last else {}))
        position, xid = _read(lines, parts, batches)
    if len(groups) > 1:
        await session.execute("COMMIT")
    return PutBack(batches, position, xid)


class _TablePart:
    """One table's part of a statement."""

    def __init__(self, repair: TableRepair) -> None:
        self.repair = repair
        originals = sorted(repair.difference.restore)
        size = max(_SMALLEST_BATCH, -(-len(originals) // _MOST_BATCHES))
        self.batches = [originals[n : n + size] for n in range(0, len(originals), size)]

    def delete_sql(self) -> str:
        tids = ",".join(f'"{ctid_text(ctid)}"' for ctid in self.repair.difference.delete)
        name = self.repair.table.name
        return f"DELETE FROM ONLY {name} WHERE ctid = ANY ('{{{tids}}}'::tid[]) RETURNING 1"

    def insert_sql(self, batch: list[Ctid]) -> str:
        """Return the statement; the rows are of the table's own row type, so no cast is needed."""
        table = self.repair.table
        rows = ",".join(_array_element(self.repair.texts[ctid]) for ctid in batch)
        literal = "{" + rows.replace("'", "''") + "}"
        return (
            f"INSERT INTO {table.name} ({table.columns}) OVERRIDING SYSTEM VALUE"
            f" SELECT {table.row_values} FROM gone, unnest('{literal}'::{table.name}[]) AS r"
            " WHERE gone.n >= 0 RETURNING ctid"
        )


def _array_element(text: str) -> str:
    """Return a text as an element of an array literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _groups(repairs: Iterable[TableRepair]) -> Iterator[list[TableRepair]]:
    left = iter(repairs)
    while some := list(islice(left, _TABLES_AT_A_TIME)):
        yield some


def _sql(database: int, parts: list[_TablePart], sequences: Mapping[int, tuple[int, bool]]) -> str:
    """Return one query of lines with three fields: a word, a number, and a value.

    The insertions read `gone`, which counts the deleted rows. So all deletions come first.
    """
    with_queries, results = [], []
    for number, part in enumerate(parts):
        if part.repair.difference.delete:
            with_queries.append(f"d{number} AS ({part.delete_sql()})")
            results.append(
                f"SELECT '{_DELETED.decode()}', {number}, (SELECT count(*) FROM d{number})::text"
            )
    deletions = [name.partition(" ")[0] for name in with_queries]
    counted = " + ".join(f"(SELECT count(*) FROM {name})" for name in deletions) or "0"
    with_queries.append(f"gone AS MATERIALIZED (SELECT {counted} AS n)")
    number = 0
    for part in parts:
        for batch in part.batches:
            with_queries.append(f"i{number} AS ({part.insert_sql(batch)})")
            results.append(
                f"SELECT '{_INSERTED.decode()}', {number},"
                f" (SELECT array_send(array_agg(ctid))::text FROM i{number})"
            )
            number += 1
    if sequences:
        values = ", ".join(f"({oid}, {v}, {called})" for oid, (v, called) in sequences.items())
        results.append(
            f"SELECT '{_SEQUENCES.decode()}',"
            " count(setval(s.oid::oid::regclass, v::bigint, called)),"
            f" NULL FROM (VALUES {values}) AS s (oid, v, called)"
        )
    results.append(
        f"SELECT '{_END.decode()}', pg_stat_get_db_numbackends({database}),"
        " concat_ws(' ', pg_current_wal_insert_lsn(), pg_current_xact_id())"
    )
    return f"WITH {', '.join(with_queries)} {' UNION ALL '.join(results)}"


def _read(
    lines: list[bytes], parts: list[_TablePart], batches: dict[int, list[Batch]]
) -> tuple[int, int]:
    """Check what was done and add to `batches`; return the WAL's position and the transaction."""
    inserted = [(part.repair.table, batch) for part in parts for batch in part.batches]
    for line in lines:
        word, number, value = line.split(b"\t", _FIELDS - 1)
        if word == _DELETED:
            repair = parts[int(number)].repair
            if int(value) != len(repair.difference.delete):
                raise CannotRewindError(
                    f"{repair.table.name}: other rows were there than were read"
                )
        elif word == _INSERTED:
            table, originals = inserted[int(number)]
            ctids = frozenset(decode_copied_ctids(value))
            if len(ctids) != len(originals):
                raise CannotRewindError(f"{table.name}: rows were not put back")
            batches.setdefault(table.oid, []).append(Batch(frozenset(originals), ctids))
        elif word == _END:
            if int(number) != 1:
                raise CannotRewindError("another session is connected")
            position, xid = value.split(b" ")
            return parse_lsn(position.decode()), int(xid)
    raise CannotRewindError("the statement that restores rows did not finish")
