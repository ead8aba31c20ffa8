"""Reading the server's log (WAL) with contrib's pg_walinspect: which pages were written to.

The functions are made in the session that reads, in its `pg_temp`, so that nothing is installed
anywhere. Only what is flushed can be read, and what aborted or asynchronous transactions wrote may
not be. So a message is written into the log first and flushed, which takes all before it along:
what is read up to there is complete.

Records that name no page are not read, because none of them is the only sign of a change: what
they tell of (a new, dropped or truncated file, the files of catalogs) also touches pg_class, or
files that are not known, or takes away pages that hold nothing any more; see `touch.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from clonepool.postgres.rewind.touched_pages import File, Written

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clonepool.postgres.gateway import Session

WINDOW_BYTES, LARGEST_WINDOW_BYTES = 1024 * 1024, 16 * 1024 * 1024
"""As much of the log is read at a time, because the event loop does nothing else while what came of
it is entered; and as much where little of it matters: of copies, say."""
FEW_PAGES = 500
MOST_BEHIND_BYTES = 32 * 1024 * 1024
"""When there is more of the log to be read, all clones that are out are recreated instead: others
would wait while one lease's gigabytes are read, which takes longer than to write them."""
PREFIX = "clonepool"
"""Of our messages in the log."""

_FLUSHING_MAJOR = 17
"""From this version on a message can be flushed within the statement that writes it."""
_BLOCKS_MAJOR = 16
"""From this version on the log is told page by page; before, as text."""
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
SELECT said[2]::oid AS database, said[1]::oid AS tablespace, said[3]::oid AS file,
       coalesce(said[4], 'main') = 'main' AS main, said[5]::int8 AS page, start_lsn, end_lsn, xid
  FROM pg_temp.clonepool_log({start}, {stop}),
       LATERAL regexp_matches(
           block_ref, 'rel (\d+)/(\d+)/(\d+)(?: fork (\w+))? blk (\d+)', 'g') AS said"""
"""The text may leave out which fork a page is of when it is the main one."""


def create_function(major: int) -> str:
    """Return the statement that gives a session the function that reads the log."""
    return _CREATE_BLOCKS if major >= _BLOCKS_MAJOR else _CREATE_RECORDS


def mark_plpgsql(major: int, mark: str) -> str:
    """Return PL/pgSQL that writes a message into the log, and waits until it is flushed.

    Before PostgreSQL 17 that is when the transaction commits that wrote it.

    Args:
        major: the server's version.
        mark: the variable that is to hold the position where the message ends.
    """
    if major >= _FLUSHING_MAJOR:
        return f"{mark} := pg_logical_emit_message(false, '{PREFIX}', '', true);"
    return f"{mark} := pg_logical_emit_message(true, '{PREFIX}', ''); COMMIT;"


def told_sql(major: int, start: str, stop: str, followed: str) -> str:
    """Return a query of one row a file that was written to, and one more.

    That one is of database 0. Its position is where the last record ends that was read; null when
    none names a page. In the place of pages it has the transactions that wrote to relations of the
    server as a whole. A position is a number of bytes since the beginning of all log.

    Args:
        major: the server's version.
        start: SQL of where a record begins or ended.
        stop: SQL of a position that is flushed; a record that ends beyond it is not read.
        followed: SQL of an array of the OIDs of the databases that matter.
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


class Told(NamedTuple):
    """What a piece of the log says.

    Attributes:
        written: which files were written to.
        writers: transactions that wrote to relations of the server as a whole.
        reached: where the last record ends that names a page; None if none does.
    """

    written: list[Written]
    writers: set[int]
    reached: int | None


def read_told(rows: Iterable[Mapping[str, Any]]) -> Told:
    """Return what the rows of `told_sql` say."""
    written: list[Written] = []
    writers: set[int] = set()
    reached = None
    for row in rows:
        if row["database"] == 0:
            (reached,) = row["positions"]
            writers = set(row["pages"])
        else:
            file = File(row["tablespace"], row["file"])
            written.append(Written(row["database"], file, row["pages"], row["positions"]))
    return Told(written, writers, reached)


async def read_piece(
    session: Session, major: int, start: int, stop: int, followed: list[int]
) -> Told:
    """Read a piece of the log.

    Args:
        session: that has the function.
        major: the server's version.
        start: where a record begins or ended.
        stop: a position that is flushed; a record that ends beyond it is not read.
        followed: OIDs of the databases that matter.

    Raises:
        StatementError: the log is not there any more.
    """
    sql = told_sql(major, "$1::text::pg_lsn", "$2::text::pg_lsn", "$3::int8[]")
    return read_told(await session.rows(sql, lsn(start), lsn(stop), followed))


def lsn(position: int) -> str:
    """Return a position in the log as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def read_lsn(text: str) -> int:
    """Return a position as a number."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)
