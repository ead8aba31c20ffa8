"""Anything that a lease may do to a clone of a schema: sessions, transactions, and how they end."""

from __future__ import annotations

import enum
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from support.columns import Column
from support.schemas import Schema, Table
from support.statements import (
    BOUNDARIES,
    CONDITIONS,
    DEFINITIONS,
    NUMBERS,
    OF_THE_DATABASE,
    ON_THE_DATABASE,
    ROWS,
    SEQUENCES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

LOG = Table("m.log", (Column("said", "text", "'said ' || $n"),), numbered=True)
"""The table of every schema that triggers write to."""
DONE = "the session has done its part"
SECONDS = 60
HASTY = "-c lock_timeout=50ms -c statement_timeout=10s -c client_min_messages=error"
"""Sessions that stay open may be in each other's way."""


class End(enum.Enum):
    """How a session ends."""

    LEFT = "it disconnects, and what it has not committed is rolled back"
    KILLED = "its backend is terminated"
    OPEN = "it stays, in its transaction, until the lease has ended"


class Session(NamedTuple):
    """What one session does."""

    statements: tuple[str, ...]
    end: End

    @property
    def sql(self) -> str:
        """The text that psql reads."""
        last = "SELECT pg_terminate_backend(pg_backend_pid());" if self.end is End.KILLED else ""
        return "\n".join([*self.statements, last, f"\\echo {DONE}\n"])


class Script(NamedTuple):
    """What one lease does.

    Attributes:
        sessions: one after another, those that stay open beside each other.
        only_rows: whether it defines nothing.
    """

    sessions: tuple[Session, ...]
    only_rows: bool

    def __str__(self) -> str:
        """Show it to people."""
        return "\n".join(f"-- {s.end.value}:\n" + "\n".join(s.statements) for s in self.sessions)


@st.composite
def scripts(draw: st.DrawFn, schema: Schema) -> Script:
    """Make a script that works on a schema; half of them work on rows only."""
    only_rows = not draw(st.booleans())
    session = _sessions(schema, only_rows=only_rows)
    return Script(tuple(draw(st.lists(session, min_size=1, max_size=3))), only_rows)


def _sessions(schema: Schema, *, only_rows: bool) -> st.SearchStrategy[Session]:
    statement = statements(schema, only_rows=only_rows)
    item = st.one_of(statement, statement, _transactions(statement))
    return st.builds(
        lambda first, items, end: Session((*first, *items), end),
        st.lists(st.sampled_from(BOUNDARIES), max_size=1),
        st.lists(item, min_size=1, max_size=4),
        st.sampled_from([End.LEFT, End.LEFT, End.KILLED, End.OPEN]),
    )


@st.composite
def _transactions(draw: st.DrawFn, statement: st.SearchStrategy[str]) -> str:
    """Make several statements one transaction, which need not be finished."""
    parts = draw(st.lists(st.one_of(statement, _savepoints(statement)), min_size=1, max_size=4))
    begin = draw(st.sampled_from(["BEGIN;", "BEGIN ISOLATION LEVEL SERIALIZABLE;"]))
    end = draw(
        st.sampled_from(["COMMIT;", "ROLLBACK;", "", "PREPARE TRANSACTION 'clonepool_left';"])
    )
    return "\n".join([begin, *parts, end])


def _savepoints(statement: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    end = st.sampled_from(["ROLLBACK TO a;", "RELEASE a;"])
    return st.builds(lambda part, end: f"SAVEPOINT a;\n{part}\n{end}", statement, end)


@st.composite
def statements(draw: st.DrawFn, schema: Schema, *, only_rows: bool) -> str:
    """Make one statement."""
    tables = [part for table in schema.tables for part in table.parts]
    table = draw(st.sampled_from([*tables, LOG]))
    ways = [_templated(table, ROWS), _of_values(table)]
    if not only_rows:
        ways += [_templated(table, DEFINITIONS), _templated(table, DEFINITIONS), _of_database()]
    return draw(st.one_of(ways))


@st.composite
def _templated(draw: st.DrawFn, table: Table, templates: tuple[str, ...]) -> str:
    template = draw(st.sampled_from(templates))
    columns = ["id", *(column.name for column in table.columns)]
    return template.format(
        t=table.name,
        s=table.short,
        c=draw(st.sampled_from(columns)) if "{c}" in template else "",
        w=draw(st.sampled_from(CONDITIONS)) if "{w}" in template else "",
        n=draw(st.sampled_from(NUMBERS)) if "{n}" in template else "",
        q=draw(st.sampled_from(SEQUENCES)) if "{q}" in template else "",
    )


@st.composite
def _of_values(draw: st.DrawFn, table: Table) -> str:
    """Make a statement that writes values of the column's own kind."""
    first = draw(st.sampled_from([500, 1, 3000]))
    if not table.columns or draw(st.booleans()):
        return f"{table.insert(first, first + draw(st.sampled_from([0, 5, 200])))};"
    column = draw(st.sampled_from(table.columns))
    value = column.at(draw(st.sampled_from(["7", "0", "id", "id + 1"])))
    return f"UPDATE {table.name} SET {column.name} = {value} {draw(st.sampled_from(CONDITIONS))};"


def _of_database() -> st.SearchStrategy[str]:
    altered = [f"ALTER DATABASE %I {words}" for words in OF_THE_DATABASE]
    return st.sampled_from([*altered, *ON_THE_DATABASE]).map(
        lambda words: f"DO $$ BEGIN EXECUTE format($f${words}$f$, current_database()); END $$;"
    )


@contextmanager
def running(script: Script, psql: Path, endpoint: Endpoint, database: str) -> Iterator[None]:
    """Do it all; inside, the sessions that stay open are, and somebody has to end them."""
    started: list[subprocess.Popen[str]] = []
    try:
        for session in script.sessions:
            started.append(_start(psql, endpoint, database))
            _tell(started[-1], session)
        yield
    finally:
        for process in started:
            process.communicate(timeout=SECONDS)


def _start(psql: Path, endpoint: Endpoint, database: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [psql, "--no-psqlrc", "--quiet", "--no-password", "--output=/dev/null", "--file=-"],
        env={**os.environ, **endpoint.env(database), "PGOPTIONS": HASTY}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _tell(process: subprocess.Popen[str], session: Session) -> None:
    """Have the session do its part, and wait until it has."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(session.sql)
    process.stdin.flush()
    for line in process.stdout:
        if line.strip() == DONE:
            break
    if session.end is End.LEFT:
        process.communicate(timeout=SECONDS)
