"""Connections to one server: opened, bounded in time, and their errors translated once.

Connections to clones and templates are opened for one use. A few to the maintenance database are
kept for DDL. No pool of asyncpg is used: its release leans on `asyncio.shield`, which abandons
the inner task inside a cancelled anyio scope.
"""

from __future__ import annotations

import io
import math
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg

from clonepool.core.limits import Limit
from clonepool.errors import ResourceError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from clonepool.postgres.endpoint import Endpoint

    Connection = asyncpg.Connection[asyncpg.Record]

CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
GRACE_SECONDS = 2.0
"""How much later than the server's own `statement_timeout` we stop waiting for its word."""

_EXHAUSTED = {"53100": Limit.STORAGE, "53300": Limit.CONNECTIONS}
_UNDEFINED_FILE = "58P01"
"""A library that is not installed, say: a matter of the statement."""
_GONE_CLASSES = ("08", "53", "57P", "58")


def identifier(name: str) -> str:
    """Return `name` quoted for use in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return `text` as an SQL string, for the statements that take no parameters."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


def is_unavailable(sqlstate: str) -> bool:
    """Say whether the SQLSTATE means that the server is gone or out of resources."""
    return sqlstate.startswith(_GONE_CLASSES) and sqlstate != _UNDEFINED_FILE


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn asyncpg's errors into ours.

    Raises:
        ResourceError: the server's disk is full, or its connections are used up.
        ServerUnavailableError: not reached, cut, out of other resources, or too slow.
        StatementError: refused by the server, with its SQLSTATE.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate or "XX000"
        if sqlstate in _EXHAUSTED:
            message = f"{doing}: {error} (SQLSTATE {sqlstate})"
            raise ResourceError(message, limit=_EXHAUSTED[sqlstate]) from error
        if is_unavailable(sqlstate):
            raise ServerUnavailableError(f"{doing}: {error} (SQLSTATE {sqlstate})") from error
        raise StatementError(
            f"{doing}: {error} (SQLSTATE {sqlstate})", sqlstate=sqlstate
        ) from error
    except TimeoutError as error:
        raise ServerUnavailableError(f"{doing}: no answer in time") from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise ServerUnavailableError(f"{doing}: {error}") from error


def _shown(sql: str) -> str:
    """Return the beginning of a statement for people: one line, and no password."""
    return sql.strip().split("\n", 1)[0].partition(" PASSWORD ")[0][:100]


class Session:
    """One connection, each statement with a deadline of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._server_timeout = -1

    @contextmanager
    def _given_up(self) -> Iterator[None]:
        """Tell `abort` from a mistake: asyncpg then stumbles over what it has just let go of."""
        try:
            yield
        except AttributeError as error:
            if not self._connection.is_closed():
                raise
            raise ServerUnavailableError("the connection was given up") from error

    @property
    def pid(self) -> int:
        """The backend's process id on the server."""
        return self._connection.get_server_pid()

    @property
    def usable(self) -> bool:
        """Whether it may be used again."""
        return not self._connection.is_closed() and not self._connection.is_in_transaction()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection ends, whoever ends it."""
        self._connection.add_termination_listener(lambda _: callback())

    async def execute(self, sql: str, *, seconds: float = STATEMENT_SECONDS) -> None:
        """Run one statement, or several when none is to run outside a transaction."""
        with translated(_shown(sql)), self._given_up():
            await self._limit(seconds)
            await self._connection.execute(sql, timeout=seconds + GRACE_SECONDS)

    async def rows(
        self, sql: str, *arguments: object, seconds: float = STATEMENT_SECONDS
    ) -> list[dict[str, Any]]:
        """Run a query and return its rows."""
        with translated(_shown(sql)), self._given_up():
            records = await self._connection.fetch(sql, *arguments, timeout=seconds)
        return [dict(record) for record in records]

    async def value(self, sql: str, *arguments: object) -> Any:
        """Return the first column of the first row."""
        (row,) = await self.rows(sql, *arguments)
        return next(iter(row.values()))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Do everything inside in one transaction; an error rolls it back."""
        with translated("a transaction"):
            async with self._connection.transaction():
                yield

    async def copy_out(self, schema: str, table: str, columns: list[str], into: io.BytesIO) -> int:
        """Write the rows of one table, without those that inherit from it, in COPY's binary format.

        Returns:
            How many rows there were.
        """
        listed = ", ".join(identifier(column) for column in columns)
        query = f"SELECT {listed} FROM ONLY {identifier(schema)}.{identifier(table)}"
        with translated(f"reading {schema}.{table}"):
            said = await self._connection.copy_from_query(
                query, output=into, format="binary", timeout=STATEMENT_SECONDS
            )
        return _count(said)

    async def copy_in(self, schema: str, table: str, columns: list[str], rows: bytes) -> int:
        """Add rows that `copy_out` wrote, and return how many they were."""
        with translated(f"writing {schema}.{table}"):
            said = await self._connection.copy_to_table(
                table,
                schema_name=schema,
                columns=columns,
                source=io.BytesIO(rows),
                format="binary",
                timeout=STATEMENT_SECONDS,
            )
        return _count(said)

    async def close(self) -> None:
        """End the connection, politely if that is quick."""
        with anyio.CancelScope(shield=True):
            try:
                await self._connection.close(timeout=CLOSE_SECONDS)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._connection.terminate()

    def abort(self) -> None:
        """Give the connection up at once: whoever is at its other end does not answer."""
        self._connection.terminate()

    async def _limit(self, seconds: float) -> None:
        milliseconds = math.ceil(seconds * 1000)
        if milliseconds != self._server_timeout:
            await self._connection.execute(
                f"SET statement_timeout = {milliseconds}", timeout=STATEMENT_SECONDS
            )
            self._server_timeout = milliseconds


def _count(said: str) -> int:
    """Return the number in a command tag such as COPY 12."""
    return int(said.rpartition(" ")[2])


class Gateway:
    """The way to one server.

    Args:
        endpoint: where and as whom.
        application_name: how our sessions call themselves in `pg_stat_activity`.
        connections: how many connections to the maintenance database there may be, and as many
            to others.
    """

    def __init__(self, endpoint: Endpoint, application_name: str, connections: int = 4) -> None:
        self.endpoint = endpoint
        self.application_name = application_name
        self._idle: list[Session] = []
        self._open: set[Session] = set()
        self.share(connections)

    def abandon(self) -> None:
        """Give up every connection that is open, at once: what is under way on them fails.

        For a line that went dead without a word: waiting for each statement's own deadline would
        take long after new connections work.
        """
        self._idle.clear()
        for session in list(self._open):
            session.abort()

    def share(self, connections: int) -> None:
        """Set how many connections there may be, before any is in use.

        Whoever holds a connection of the second kind never waits for one of the first, so that the
        two cannot wait for each other.
        """
        self.connections = 2 * connections
        self._control_places = anyio.Semaphore(connections)
        self._session_places = anyio.Semaphore(connections)

    async def connect(self, database: str, *, seconds: float = CONNECT_SECONDS) -> Session:
        """Open a connection, beside those that are counted.

        Raises:
            ServerUnavailableError, StatementError: no connection was left open.
        """
        where = f"{self.endpoint.host}, port {self.endpoint.port}"
        with translated(f"connecting to {database} at {where}"):
            connection = await asyncpg.connect(
                dsn=self.endpoint.asyncpg_url(database),
                timeout=seconds,
                statement_cache_size=0,
                server_settings={"application_name": self.application_name},
            )
        session = Session(connection)
        self._open.add(session)
        session.on_end(lambda: self._open.discard(session))
        return session

    @asynccontextmanager
    async def session(self, database: str) -> AsyncIterator[Session]:
        """A connection for one use, closed afterwards."""
        async with self._session_places:
            session = await self.connect(database)
            try:
                yield session
            finally:
                await session.close()

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Session]:
        """A connection to the maintenance database, kept for the next use if nothing went wrong."""
        async with self._control_places:
            session = self._take_idle() or await self.connect(self.endpoint.maintenance)
            try:
                yield session
            except StatementError:
                self._keep(session)
                raise
            except BaseException:
                # Cut, late or cancelled: what the server does with it now is not known.
                await session.close()
                raise
            self._keep(session)

    async def ddl(self, sql: str, *, seconds: float = STATEMENT_SECONDS) -> None:
        """Run one statement on a control connection, outside any transaction.

        When this raises, the statement is over on the server too: it was refused or cancelled
        there, or its backend was ended. So a CREATE DATABASE that failed does not come true later.
        """
        async with self.control() as session:
            pid = session.pid
            try:
                await session.execute(sql, seconds=seconds)
            except StatementError:
                raise
            except BaseException:
                with anyio.move_on_after(STATEMENT_SECONDS, shield=True):
                    await self._end_backend(pid)
                raise

    async def close(self) -> None:
        """Close the kept connections."""
        while self._idle:
            await self._idle.pop().close()

    def _take_idle(self) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            if session.usable:
                return session
        return None

    def _keep(self, session: Session) -> None:
        if session.usable:
            self._idle.append(session)

    async def _end_backend(self, pid: int) -> None:
        """End a backend of ours and wait until it is gone; give up if the server is gone too."""
        try:
            async with self.session(self.endpoint.maintenance) as session:
                while await session.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid = $1 AND usename = current_user",
                    pid,
                ):
                    await anyio.sleep(0.01)
        except (ServerUnavailableError, StatementError):
            return
