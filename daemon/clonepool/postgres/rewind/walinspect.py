"""Reads the server's WAL with contrib's pg_walinspect: which pages were written to.

pg_walinspect's functions are created in `pg_temp` of the session that reads, so nothing is
installed. Only what is flushed can be read, and what aborted or asynchronous transactions wrote may
not be flushed. So a message is written into the WAL first and flushed, which flushes all before it:
up to that message, reading is complete.

Records that name no page are not read. What they tell of (a new, dropped or truncated file, the
files of mapped catalogs) is also seen otherwise: pg_class or an unknown file is written to, or the
pages that disappear were emptied before, by records that name them. See `changes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from clonepool.postgres.rewind.touched_pages import File, FileWrites

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clonepool.postgres.session import Session

WINDOW_BYTES, LARGEST_WINDOW_BYTES = 1024 * 1024, 16 * 1024 * 1024
"""Bytes of WAL that are read at a time, as the event loop does nothing else while the result is
processed; and at most, where little of it concerns clones (while databases are copied, say)."""
FEW_PAGES = 500
"""Number of touched pages in a window up to which the next window is twice as large."""
MOST_BEHIND_BYTES = 32 * 1024 * 1024
"""Bytes of unread WAL beyond which reading is given up, and all leased clones are recreated.

Reading takes longer than writing: other leases would wait while one lease's gigabytes are read."""
PREFIX = "clonepool"
"""Prefix of the daemon's messages in the WAL."""

_FLUSHING_MAJOR = 17
"""First version in which the function that writes a message can also flush it."""
_BLOCKS_MAJOR = 16
"""First version in which pg_walinspect returns a row for each page; before, it returns text."""
_START = "'0/0'::pg_lsn"
_CREATE_BLOCKS = """\
CREATE FUNCTION pg_temp.clonepool_log(pg_lsn, pg_lsn, boolean,
    OUT start_lsn pg_lsn, OUT end_lsn pg_lsn, OUT prev_lsn pg_lsn, OUT block_id int2,
    OUT reltablespace oid, OUT reldatabase oid, OUT relfilenode oid, OUT relforknumber int2,
    OUT relblocknumber int8, OUT xid xid, OUT resource_manager text, OUT record_type text,
    OUT record_length int4, OUT main_data_length int4, OUT block_data_length int4,
    OUT block_fpi_length int4, OUT block_fpi_info text[], OUT description text,
    OUT block_data bytea, OUT block_fpi_data bytea)
RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/pg_walinspect', 'pg_get_wal_block_info'
"""
_CREATE_RECORDS = """\
CREATE FUNCTION pg_temp.clonepool_log(pg_lsn, pg_lsn,
    OUT start_lsn pg_lsn, OUT end_lsn pg_lsn, OUT prev_lsn pg_lsn, OUT xid xid,
    OUT resource_manager text, OUT record_type text, OUT record_length int4,
    OUT main_data_length int4, OUT fpi_length int4, OUT description text, OUT block_ref text)
RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/pg_walinspect', 'pg_get_wal_records_info'
"""
_BLOCKS = """\
SELECT reldatabase AS database, reltablespace AS tablespace, relfilenode AS file,
       relforknumber = 0 AS main, relblocknumber AS page, start_lsn, end_lsn, xid
  FROM pg_temp.clonepool_log({start}, {stop}, false)"""
_RECORDS = r"""
SELECT ref[2]::oid AS database, ref[1]::oid AS tablespace, ref[3]::oid AS file,
       coalesce(ref[4], 'main') = 'main' AS main, ref[5]::int8 AS page, start_lsn, end_lsn, xid
  FROM pg_temp.clonepool_log({start}, {stop}),
       LATERAL regexp_matches(
           block_ref, 'rel (\d+)/(\d+)/(\d+)(?: fork (\w+))? blk (\d+)', 'g') AS ref"""
"""The text may leave out the fork if it is the main one."""


def create_function(major: int) -> str:
    """Return the statement that creates the function that reads the WAL in a session."""
    return _CREATE_BLOCKS if major >= _BLOCKS_MAJOR else _CREATE_RECORDS


def flush_plpgsql(major: int, mark: str) -> str:
    """Return PL/pgSQL that writes a message into the WAL and waits until it is flushed.

    Before PostgreSQL 17 a message is flushed when the transaction that wrote it commits.

    Args:
        major: the server's version.
        mark: the variable that receives the position where the message ends.
    """
    if major >= _FLUSHING_MAJOR:
        return f"{mark} := pg_logical_emit_message(false, '{PREFIX}', '', true);"
    return f"{mark} := pg_logical_emit_message(true, '{PREFIX}', ''); COMMIT;"


def touched_pages_sql(major: int, start: str, stop: str, followed: str) -> str:
    """Return a query of one row per file that was written to, and one row more.

    The additional row has database 0. Its only position is where the last record ends that was read
    and names a page, or null if there is none. Instead of pages it has the transactions that wrote
    to shared relations. Positions are in bytes from the beginning of the WAL.

    Args:
        major: the server's version.
        start: SQL of a position at which a record begins or has ended.
        stop: SQL of a position that is flushed; records that end beyond it are not read.
        followed: SQL of an array of the OIDs of the databases whose pages are returned.
    """
    refs = (_BLOCKS if major >= _BLOCKS_MAJOR else _RECORDS).format(start=start, stop=stop)
    return f"""\
WITH refs AS MATERIALIZED ({refs}),
pages AS (SELECT database, tablespace, file, page, max(start_lsn) AS at FROM refs
           WHERE main AND database = ANY ({followed}::oid[])
           GROUP BY database, tablespace, file, page)
SELECT database::int8, tablespace::int8, file::int8, array_agg(page) AS pages,
       array_agg((at - {_START})::int8) AS positions
  FROM pages GROUP BY database, tablespace, file
UNION ALL
SELECT 0, 0, 0, ARRAY(SELECT DISTINCT xid::text::int8 FROM refs
                       WHERE database = 0 AND main AND xid::text <> '0'),
       ARRAY[(SELECT max(end_lsn) - {_START} FROM refs)::int8]"""


class WalPiece(NamedTuple):
    """What was read of a piece of the WAL.

    Attributes:
        writes: which files were written to.
        writers: the transactions that wrote to shared relations.
        reached: where the last record ends that names a page; None if there is none.
    """

    writes: list[FileWrites]
    writers: set[int]
    reached: int | None


def piece_of(rows: Iterable[Mapping[str, Any]]) -> WalPiece:
    """Return what the rows of `touched_pages_sql` say."""
    writes: list[FileWrites] = []
    writers: set[int] = set()
    reached = None
    for row in rows:
        if row["database"] == 0:
            (reached,) = row["positions"]
            writers = set(row["pages"])
        else:
            file = File(row["tablespace"], row["file"])
            writes.append(FileWrites(row["database"], file, row["pages"], row["positions"]))
    return WalPiece(writes, writers, reached)


async def read_piece(
    session: Session, major: int, start: int, stop: int, followed: list[int]
) -> WalPiece:
    """Read a piece of the WAL.

    Args:
        session: one in which the function was created.
        major: the server's version.
        start: a position at which a record begins or has ended.
        stop: a position that is flushed; records that end beyond it are not read.
        followed: OIDs of the databases whose pages are returned.

    Raises:
        StatementError: the server has removed that part of the WAL.
    """
    sql = touched_pages_sql(major, "$1::text::pg_lsn", "$2::text::pg_lsn", "$3::int8[]")
    return piece_of(await session.rows(sql, lsn_text(start), lsn_text(stop), followed))


def lsn_text(position: int) -> str:
    """Return a position in the WAL as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """Return the position that PostgreSQL writes like that, in bytes."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)
