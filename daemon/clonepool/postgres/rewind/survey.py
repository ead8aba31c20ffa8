"""What a clone looks like at one moment, in so few numbers that no change escapes them.

For each relation with rows of its own: its file, how many rows were ever inserted, updated and
deleted in it, its size, how many of its pages the visibility map calls all-visible and all-frozen
(of a large table both together), and the age of its oldest row. Any change of rows moves one of
these:

- with counting on, each insert, update and delete counts, rolled back or not;
- with counting off (a superuser may), a changed page loses its bits in the visibility map, which
  was complete, because every table was vacuumed and frozen last;
- VACUUM gives the bit for visible back, the one for frozen only if it freezes, and freezing moves
  `relfrozenxid`;
- TRUNCATE, CLUSTER, VACUUM FULL and REFRESH change the file.

A counter that went backwards is a change as well; that the server lost them all is seen by when
they were reset. Sequences count nothing: of these it is what their one page says. It is read by
OID and not by name, where the lease may have put a view of its own, whose functions would run with
our rights. The pages of TOAST tables are not looked at: nothing is written there without a row of
the table that they belong to.

What the planner believes of tables and indexes (pg_class's numbers) goes into one digest.

It is one query and one round trip, read as lines: two surveys are compared as sets of lines, and
only lines that differ are ever taken apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from clonepool.postgres.gateway import Session

FIRST_USER_OID = 16_384
PAGE_BYTES = 8192
"""Of a server that was built as nearly all are; of another, no map ever seems complete."""
MAP_SUMMARY = "pg_catalog.clonepool_map_summary"
"""The function of contrib's pg_visibility, under a name that no dump contains."""
RAW_PAGE = "pg_catalog.clonepool_raw_page"
"""The function of contrib's pageinspect, likewise."""
PAGES = "pg_catalog.clonepool_pages"
"""The function of contrib's pgstattuple, likewise: a third of what pg_relation_size costs."""
CHECK_BTREE = "pg_catalog.clonepool_bt_index_check"
"""The function of contrib's amcheck that says whether an index has all rows of its table."""
CHECK_GIN = "pg_catalog.clonepool_gin_index_check"
"""Another of that, which PostgreSQL 18 has: whether an index is consistent in itself."""

CREATE_MAP_SUMMARY = f"""\
CREATE OR REPLACE FUNCTION {MAP_SUMMARY}(
    regclass, OUT all_visible bigint, OUT all_frozen bigint)
RETURNS record LANGUAGE c STRICT AS '$libdir/pg_visibility', 'pg_visibility_map_summary'
"""
CREATE_RAW_PAGE = f"""\
CREATE OR REPLACE FUNCTION {RAW_PAGE}(text, text, bigint)
RETURNS bytea LANGUAGE c STRICT AS '$libdir/pageinspect', 'get_raw_page_fork_1_9'
"""
CREATE_PAGES = f"""\
CREATE OR REPLACE FUNCTION {PAGES}(regclass)
RETURNS bigint LANGUAGE c STRICT AS '$libdir/pgstattuple', 'pg_relpagesbyid_v1_5'
"""
CREATE_CHECK_BTREE = f"""\
CREATE OR REPLACE FUNCTION {CHECK_BTREE}(regclass, boolean)
RETURNS void LANGUAGE c STRICT AS '$libdir/amcheck', 'bt_index_check'
"""
CREATE_CHECK_GIN = f"""\
CREATE OR REPLACE FUNCTION {CHECK_GIN}(regclass)
RETURNS void LANGUAGE c STRICT AS '$libdir/amcheck', 'gin_index_check'
"""
MOST_SUMMED_PAGES = 2048
"""In the maps of larger tables bits are counted a page of the map at a time: there the function of
pg_visibility, which asks for page after page of the table, would take most of a rewind."""
_CREATE_FUNCTIONS = (CREATE_MAP_SUMMARY, CREATE_RAW_PAGE, CREATE_PAGES, CREATE_CHECK_BTREE)
_SINCE_GIN_MAJOR = 18

ALL_FROZEN_MAJOR = 18
"""From this version on pg_class says how many pages are all-frozen."""
DATABASE = 0
"""What stands for an OID in the line of the database as a whole."""
_OF_DATABASE = b"%d;" % DATABASE

_NO_NUMBER, _NUMBER = "'0'::xid8", "pg_current_xact_id()"
_NUMBERS = "relallvisible"
_DATABASE = f"""\
SELECT concat_ws(';', {DATABASE}, pg_stat_get_db_numbackends(oid),
           concat_ws(',', pg_stat_get_db_xact_rollback(oid),
               (SELECT coalesce(sum(hash_record_extended(
                               ROW(pg_class.oid, relpages, reltuples, {_NUMBERS}), 0)), 0)
                  FROM pg_catalog.pg_class WHERE pg_class.oid >= {FIRST_USER_OID})),
           {_NO_NUMBER}) AS line
  FROM pg_catalog.pg_database WHERE datname = current_database()
"""
_ALL = "NOT relisshared"
_BITS = f"""\
SELECT '[' || sum(bit_count(substr({RAW_PAGE}(oid::regclass::text, 'vm', n), 25))) || ']'
  FROM generate_series(0, pg_relation_size(oid, 'vm') / {PAGE_BYTES} - 1) AS n"""
_SEQUENCE = f"""\
SELECT encode(substr(page, 8161, 8) || substr(page, 8177, 1), 'hex')
  FROM {RAW_PAGE}(oid::regclass::text, 'main', 0) AS page"""
"""A sequence's last value and whether it was called; between them stands how many more the WAL
allows, which says nothing."""
_RELATIONS = f"""\
SELECT concat_ws(';', oid, CASE WHEN relkind = 'S' THEN ({_SEQUENCE}) ELSE
       concat_ws(',', relfilenode, relfrozenxid, relminmxid,
           pg_stat_get_vacuum_count(oid) + pg_stat_get_autovacuum_count(oid),
           pg_stat_get_tuples_inserted(oid), pg_stat_get_tuples_updated(oid),
           pg_stat_get_tuples_deleted(oid),
           CASE WHEN relkind = 't' THEN NULL
                WHEN pages > {MOST_SUMMED_PAGES} THEN ({_BITS})
                ELSE {MAP_SUMMARY}(oid)::text END) END,
       pages * {PAGE_BYTES}, relpages) AS line
  FROM (SELECT *, CASE WHEN relkind IN ('t', 'S') THEN 0 ELSE {PAGES}(oid) END AS pages
          FROM pg_catalog.pg_class
         WHERE relkind IN ('r', 'm', 't', 'S') AND NOT relisshared) AS relation
"""


def create_functions(major: int) -> tuple[str, ...]:
    """Return the statements that give a database the functions above, as far as there are any."""
    if major >= _SINCE_GIN_MAJOR:
        return (*_CREATE_FUNCTIONS, CREATE_CHECK_GIN)
    return _CREATE_FUNCTIONS


class Survey(NamedTuple):
    """One look at a clone.

    Attributes:
        lines: of relations and sequences.
        rollbacks: how many transactions were ever rolled back there.
        estimates: a digest of what the planner believes of the sizes of relations.
    """

    lines: frozenset[bytes]
    rollbacks: int
    estimates: int


class Line(NamedTuple):
    """What one line says of a relation or a sequence.

    Attributes:
        state: what every change of rows changes, but for the size.
        size: in bytes, without TOAST and indexes.
        pages: how many it is believed to have.
    """

    oid: int
    state: str
    size: int
    pages: int

    @property
    def settled(self) -> bool:
        """Whether its map is complete: whoever writes to it now leaves a trace there."""
        *_, frozen = self.state.split(",")
        pages = self.size // PAGE_BYTES
        if frozen.endswith(")"):
            return self.state.endswith(f"({pages},{pages})")
        return not frozen.endswith("]") or frozen == f"[{2 * pages}]"

    @property
    def grown(self) -> bool:
        """Whether there are so many pages more than the planner believes that it would notice."""
        return self.size // PAGE_BYTES > self.pages + max(1, self.pages // 2)

    @property
    def value(self) -> tuple[int, bool]:
        """A sequence's last value, and whether it was called."""
        value, called = bytes.fromhex(self.state[:16]), self.state[16:]
        return int.from_bytes(value, "little", signed=True), called != "00"


def read_line(line: bytes) -> Line:
    """Take a line of a survey apart."""
    oid, state, size, pages = line.decode().split(";")
    return Line(int(oid), state, int(size), int(pages))


def lines_without(lines: Iterable[bytes], oids: Iterable[int]) -> set[bytes]:
    """Return the lines that are none of these relations'."""
    beginnings = tuple(b"%d;" % oid for oid in oids)
    return {line for line in lines if not line.startswith(beginnings)}


class CrowdedError(Exception):
    """Somebody else is connected to the clone that is looked at."""


async def take_survey(
    session: Session,
    major: int,
    only: Collection[int] | None = None,
    *,
    ends: bool = False,
) -> Survey:
    """Look at the session's database.

    Args:
        session: to the clone.
        major: the server's version.
        only: OIDs of the relations and sequences to look at; None for all.
        ends: whether this ends a rewind. It takes a transaction number then, so that the next
            lease's are above the age that VACUUM gave a table, and VACUUM moves that age again.

    Raises:
        CrowdedError: somebody else is connected: what is seen may change at any moment.
        StatementError: the server does not say.
    """
    oids = [] if only is None else [sorted(only)]
    if session.prepares:
        which = "" if only is None else "= ANY ($1::oid[])"
        text = await session.value(_aggregated(_query(major, which, ends=ends)), *oids)
        return read_survey(text)
    which = f"IN ({', '.join(map(str, *oids)) or 0})" if oids else ""
    return _survey(await session.lines(_query(major, which, ends=ends)))


def survey_sql(major: int) -> str:
    """Return the query of a whole survey as one text, to be read by `read_survey`."""
    return _aggregated(_query(major, "", ends=False))


def read_survey(text: str) -> Survey:
    """Return the survey that a query as of `survey_sql` found.

    Raises:
        CrowdedError: somebody else is connected.
    """
    return _survey(text.encode().splitlines())


def _aggregated(query: str) -> str:
    return f"SELECT string_agg(line, E'\\n') FROM ({query}) AS found"


def _survey(lines: list[bytes]) -> Survey:
    (whole,) = (line for line in lines if line.startswith(_OF_DATABASE))
    _, backends, counts, _ = whole.split(b";")
    if int(backends) != 1:
        raise CrowdedError
    rollbacks, estimates = map(int, counts.split(b","))
    return Survey(frozenset(lines) - {whole}, rollbacks, estimates)


def _query(major: int, which: str, *, ends: bool) -> str:
    relations = _RELATIONS.replace(_ALL, f"{_ALL} AND oid {which}") if which else _RELATIONS
    database = _DATABASE.replace(_NO_NUMBER, _NUMBER) if ends else _DATABASE
    if major >= ALL_FROZEN_MAJOR:
        database = database.replace(_NUMBERS, f"{_NUMBERS}, relallfrozen")
    return f"{database} UNION ALL {relations}"
