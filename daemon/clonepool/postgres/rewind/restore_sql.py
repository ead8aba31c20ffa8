"""The SQL that puts rows and sequences back, and what it says.

One statement puts several tables back: what should not be there is deleted and counted, then what
is missing is inserted, in batches, each of which says where its rows are now.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.layout import Batch, tid
from clonepool.postgres.rewind.row_locations import read_copied
from clonepool.postgres.rewind.walinspect import read_lsn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.layout import Difference, Place

_SMALLEST_BATCH = 16
"""When one of these rows is changed again, all of them are put back again."""
_MOST_BATCHES = 32
"""Of one table in one rewind: with more rows the batches are larger."""
_TABLES_AT_A_TIME = 64
_FIELDS = 3
_DELETED, _INSERTED, _SET, _END = b"deleted", b"inserted", b"set", b"end"


class Repair(msgspec.Struct, frozen=True):
    """What is to be done to one table.

    Attributes:
        difference: places of rows to be deleted and restored.
        texts: of the rows to be restored, by their places in the generation.
    """

    table: Table
    difference: Difference
    texts: Mapping[Place, str]

    @property
    def bytes(self) -> int:
        """About how many bytes of rows are to be restored."""
        return sum(len(self.texts[place]) for place in self.difference.restore)


class Restored(msgspec.Struct, frozen=True):
    """What was done.

    Attributes:
        batches: by the table's OID, where the restored rows are.
        at: position in the log after all of it.
        xid: the transaction's.
    """

    batches: dict[int, list[Batch]]
    at: int
    xid: int


async def restore(
    session: Session,
    database: int,
    repairs: list[Repair],
    sequences: Mapping[int, tuple[int, bool]],
) -> Restored:
    """Put tables and sequences back, in one transaction; sequences know none.

    Args:
        session: to the clone.
        database: its OID.
        repairs: of tables.
        sequences: last value and whether it was called, by OID. They end so that the next value
            that is taken is logged.

    Raises:
        CannotRewindError: other rows were there than those that were seen, or somebody else is.
        StatementError, ServerUnavailableError: the clone is in an unknown state.
    """
    batches: dict[int, list[Batch]] = {}
    groups = list(_groups(repairs)) or [[]]
    if len(groups) > 1:
        await session.execute("BEGIN")
    at = xid = 0
    for number, some in enumerate(groups):
        parts = [_Part(repair) for repair in some]
        setting = sequences if number == len(groups) - 1 else {}
        lines = await session.lines(_sql(database, parts, setting))
        at, xid = _read(lines, parts, batches)
    if len(groups) > 1:
        await session.execute("COMMIT")
    return Restored(batches, at, xid)


class _Part:
    """One table's part of a statement."""

    def __init__(self, repair: Repair) -> None:
        self.repair = repair
        originals = sorted(repair.difference.restore)
        size = max(_SMALLEST_BATCH, -(-len(originals) // _MOST_BATCHES))
        self.batches = [originals[n : n + size] for n in range(0, len(originals), size)]

    def delete_sql(self) -> str:
        tids = ",".join(f'"{tid(place)}"' for place in self.repair.difference.delete)
        name = self.repair.table.name
        return f"DELETE FROM ONLY {name} WHERE ctid = ANY ('{{{tids}}}'::tid[]) RETURNING 1"

    def insert_sql(self, batch: list[Place]) -> str:
        """Return the statement; the rows' type is the table's own, and needs no cast."""
        table = self.repair.table
        rows = ",".join(_element(self.repair.texts[place]) for place in batch)
        literal = "{" + rows.replace("'", "''") + "}"
        return (
            f"INSERT INTO {table.name} ({table.columns}) OVERRIDING SYSTEM VALUE"
            f" SELECT {table.values} FROM gone, unnest('{literal}'::{table.name}[]) AS r"
            " WHERE gone.n >= 0 RETURNING ctid"
        )


def _element(text: str) -> str:
    """Return a text as an element of an array."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _groups(repairs: Iterable[Repair]) -> Iterator[list[Repair]]:
    left = iter(repairs)
    while some := list(islice(left, _TABLES_AT_A_TIME)):
        yield some


def _sql(database: int, parts: list[_Part], sequences: Mapping[int, tuple[int, bool]]) -> str:
    """Return one query of lines: a word, a number, and what goes with it."""
    tables, told = [], []
    for number, part in enumerate(parts):
        if part.repair.difference.delete:
            tables.append(f"d{number} AS ({part.delete_sql()})")
            told.append(
                f"SELECT '{_DELETED.decode()}', {number}, (SELECT count(*) FROM d{number})::text"
            )
    deletions = [name.partition(" ")[0] for name in tables]
    counted = " + ".join(f"(SELECT count(*) FROM {name})" for name in deletions) or "0"
    tables.append(f"gone AS MATERIALIZED (SELECT {counted} AS n)")
    at = 0
    for part in parts:
        for batch in part.batches:
            tables.append(f"i{at} AS ({part.insert_sql(batch)})")
            told.append(
                f"SELECT '{_INSERTED.decode()}', {at},"
                f" (SELECT array_send(array_agg(ctid))::text FROM i{at})"
            )
            at += 1
    if sequences:
        values = ", ".join(f"({oid}, {v}, {called})" for oid, (v, called) in sequences.items())
        told.append(
            f"SELECT '{_SET.decode()}', count(setval(s.oid::oid::regclass, v::bigint, called)),"
            f" NULL FROM (VALUES {values}) AS s (oid, v, called)"
        )
    told.append(
        f"SELECT '{_END.decode()}', pg_stat_get_db_numbackends({database}),"
        " concat_ws(' ', pg_current_wal_insert_lsn(), pg_current_xact_id())"
    )
    return f"WITH {', '.join(tables)} {' UNION ALL '.join(told)}"


def _read(
    lines: list[bytes], parts: list[_Part], batches: dict[int, list[Batch]]
) -> tuple[int, int]:
    """Enter where rows are now; return where the log is, and which transaction it was."""
    asked = [(part.repair.table, batch) for part in parts for batch in part.batches]
    for line in lines:
        word, number, said = line.split(b"\t", _FIELDS - 1)
        if word == _DELETED:
            repair = parts[int(number)].repair
            if int(said) != len(repair.difference.delete):
                raise CannotRewindError(f"{repair.table.name}: other rows were there than seen")
        elif word == _INSERTED:
            table, originals = asked[int(number)]
            places = frozenset(read_copied(said))
            if len(places) != len(originals):
                raise CannotRewindError(f"{table.name}: rows were not taken back")
            batches.setdefault(table.oid, []).append(Batch(frozenset(originals), places))
        elif word == _END:
            if int(number) != 1:
                raise CannotRewindError("somebody else is connected")
            at, xid = said.split(b" ")
            return read_lsn(at.decode()), int(xid)
    raise CannotRewindError("the statement that puts rows back did not come to its end")
