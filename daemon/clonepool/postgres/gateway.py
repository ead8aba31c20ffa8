"""Connections to one server: opening them, limiting their time, translating their errors.

A connection to a clone or template is opened for one use. A few connections to the maintenance
database are kept for DDL. asyncpg's pool is not used: its release relies on `asyncio.shield`, which
abandons the inner task inside a cancelled anyio scope.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg

from clonepool import resource_errors
from clonepool.core.limits import Limit
from clonepool.errors import ResourceError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from clonepool.postgres.endpoint import Endpoint

    Connection = asyncpg.Connection[asyncpg.Record]

CONNECT_SECONDS = 10.0
"""Time limit of opening a connection."""
STATEMENT_SECONDS = 10.0
"""Time limit of a statement, unless another is given."""
CLOSE_SECONDS = 2.0
"""Time limit of closing a connection in an orderly way."""
GRACE_SECONDS = 2.0
"""Time by which a statement's limit here exceeds the server's own `statement_timeout`."""

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_LEFT_ALONE = "\0"
"""Stands for the value that the database or role has."""
_OF_EVERY_SESSION: Mapping[str, str] = MappingProxyType(
    {
        # With another search_path, names in the daemon's queries could mean functions of clients,
        # which would run with the daemon's rights.
        "search_path": "pg_catalog",
        "role": "none",
        "default_transaction_read_only": "off",
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        # Each statement has a time limit of its own, and connections are kept.
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        # A library that is not installed would make every connection fail.
        "local_preload_libraries": "",
        # How statements and their results are parsed.
        "standard_conforming_strings": "on",
        "backslash_quote": "safe_encoding",
        "quote_all_identifiers": "off",
        "transform_null_equals": "off",
        "array_nulls": "on",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "xmloption": "content",
        # A refused statement must not end the session.
        "exit_on_error": "off",
        "client_min_messages": "warning",
        "vacuum_cost_delay": "0",
    }
)
"""Settings of every session, whatever ALTER … SET gave the database, the role or the server."""
_SINCE: Mapping[int, Mapping[str, str]] = MappingProxyType(
    {14: {"idle_session_timeout": "0"}, 17: {"transaction_timeout": "0"}}
)
"""Settings by the first version that has them; older ones refuse a connection that names them."""
_OF_SUPERUSERS: Mapping[str, str] = MappingProxyType(
    {"session_preload_libraries": "", "session_replication_role": "origin"}
)
"""Settings that only superusers may give."""
_OF_SUPERUSERS_FROM_17: Mapping[str, str] = MappingProxyType({"event_triggers": "off"})
"""Keeps login triggers from running with the daemon's rights."""
OWN_NAMES: Mapping[str, str] = MappingProxyType({"search_path": _LEFT_ALONE})
"""For a session whose statements depend on the database's own search_path."""
_EXHAUSTED = {"53100": Limit.STORAGE, "53300": Limit.CONNECTIONS}
_LOGIN_TRIGGERS_MAJOR = 17
_LARGEST_PREPARED_BYTES = 128 * 1024
"""Length of a statement beyond which it is not prepared for later use."""
_PREPARED = 16
"""Number of prepared statements of a connection that is kept."""
_UNDEFINED_FILE = "58P01"
"""SQLSTATE of a missing file, such as a library: the statement's fault, not the server's."""
CONNECT_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "": "see that the server runs, and that `server` says where",
        "28000": "let the daemon's role in: a line for it in pg_hba.conf, for all databases, then"
        " SELECT pg_reload_conf()",
        "28P01": "check the password: in the URL, PGPASSWORD or the file that PGPASSFILE names",
        "3D000": "name an existing database in the URL, such as postgres",
        "53300": "raise the server's max_connections, or end sessions",
    }
)
_GONE_CLASSES = ("08", "53", "57P", "58")
"""Beginnings of SQLSTATEs that mean that the server is gone or out of resources."""


def identifier(name: str) -> str:
    """Return `name` quoted for use in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return `text` as an SQL string, for statements that take no parameters."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


def is_unavailable(sqlstate: str) -> bool:
    """Say whether the SQLSTATE means that the server is gone or out of resources."""
    return sqlstate.startswith(_GONE_CLASSES) and sqlstate != _UNDEFINED_FILE


@contextmanager
def translated(doing: str, remedies: Mapping[str, str] = NO_SETTINGS) -> Iterator[None]:
    """Turn asyncpg's errors into clonepool's.

    Args:
        doing: what is being done, for the message.
        remedies: what a person can do, by SQLSTATE; by an empty one if there was no answer.

    Raises:
        ResourceError: the server's disk is full, its connections are used up, or this machine is
            short of file descriptors or memory.
        ServerUnavailableError: the server cannot be reached, has closed the connection, is out of
            other resources, or too slow.
        StatementError: the server refused, with its SQLSTATE.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate or "XX000"
        message, remedy = f"{doing}: {error} (SQLSTATE {sqlstate})", remedies.get(sqlstate, "")
        if sqlstate in _EXHAUSTED:
            limit = _EXHAUSTED[sqlstate]
            raise ResourceError(message, limit=limit, remedy=remedy) from error
        if is_unavailable(sqlstate):
            raise ServerUnavailableError(message, remedy=remedy) from error
        raise StatementError(message, sqlstate=sqlstate, remedy=remedy) from error
    except TimeoutError as error:
        remedy = remedies.get("", "")
        raise ServerUnavailableError(f"{doing}: no answer in time", remedy=remedy) from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        short = resource_errors.told(error, doing)
        away = ServerUnavailableError(f"{doing}: {error}", remedy=remedies.get("", ""))
        raise short or away from error


def _shown(sql: str) -> str:
    """Return the beginning of a statement for a message: one line, and no password."""
    return sql.strip().split("\n", 1)[0].partition(" PASSWORD ")[0][:100]


class _CopyOutput:
    """Collects what COPY writes. A file would not do: asyncpg would write to it in a thread."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    async def add(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def get(self) -> bytes:
        return b"".join(self._pieces)


class Session:
    """One connection; each statement has a time limit of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._server_timeout = _milliseconds(STATEMENT_SECONDS)
        self._set: dict[str, str] = {}

    @contextmanager
    def _abort_translated(self) -> Iterator[None]:
        """Translate the AttributeError that asyncpg raises after `abort` released its transport."""
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
        """Whether it can be used again."""
        return not self._connection.is_closed() and not self._connection.is_in_transaction()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection ends, for whatever reason."""
        self._connection.add_termination_listener(lambda _: callback())

    async def execute(self, sql: str, *, seconds: float = STATEMENT_SECONDS) -> None:
        """Run one statement, or several if all of them may run in one transaction."""
        with translated(_shown(sql)), self._abort_translated():
            await self._limit(seconds)
            await self._connection.execute(sql, timeout=seconds + GRACE_SECONDS)

    async def set(self, name: str, value: str) -> None:
        """Give a setting of this session a value, unless it has been given that before.

        A kept connection keeps the value. So whoever depends on a setting must give it each time.
        """
        if self._set.get(name) != value:
            await self.execute(f"SET {name} = {literal(value)}")
            self._set[name] = value

    async def rows(
        self, sql: str, *arguments: object, seconds: float = STATEMENT_SECONDS
    ) -> list[dict[str, Any]]:
        """Run a query and return its rows."""
        with translated(_shown(sql)), self._abort_translated():
            records = await self._connection.fetch(sql, *arguments, timeout=seconds)
        return [dict(record) for record in records]

    async def value(self, sql: str, *arguments: object) -> Any:
        """Return the first column of the first row."""
        (row,) = await self.rows(sql, *arguments)
        return next(iter(row.values()))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Run the statements inside in one transaction; an error rolls it back."""
        with translated("a transaction"):
            async with self._connection.transaction():
                yield

    async def lines(self, query: str) -> list[bytes]:
        """Run a query of one statement and return its rows as lines that COPY writes.

        That takes one round trip, and values are not decoded.
        """
        output = _CopyOutput()
        with translated(_shown(query)):
            await self._connection.copy_from_query(
                query, output=output.add, timeout=STATEMENT_SECONDS
            )
        return output.get().splitlines()

    async def close(self) -> None:
        """Close the connection, in an orderly way if that is quick."""
        with anyio.CancelScope(shield=True):
            try:
                await self._connection.close(timeout=CLOSE_SECONDS)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._connection.terminate()

    def abort(self) -> None:
        """Close the connection at once, without telling the server."""
        self._connection.terminate()

    async def _limit(self, seconds: float) -> None:
        milliseconds = _milliseconds(seconds)
        if milliseconds != self._server_timeout:
            await self._connection.execute(
                f"SET statement_timeout = {milliseconds}", timeout=STATEMENT_SECONDS
            )
            self._server_timeout = milliseconds


def _milliseconds(seconds: float) -> int:
    """Return a time as `statement_timeout` takes it."""
    return math.ceil(seconds * 1000)


class Gateway:
    """The way to one server.

    Args:
        endpoint: where the server is, and as which role to log in.
        application_name: of the sessions, in `pg_stat_activity`.
        connections: how many connections to the maintenance database there may be, and as many to
            other databases.
    """

    def __init__(self, endpoint: Endpoint, application_name: str, connections: int = 4) -> None:
        self.endpoint = endpoint
        self.application_name = application_name
        self._idle: list[Session] = []
        self._open: set[Session] = set()
        self._settings = dict(_OF_EVERY_SESSION)
        self.major = 0
        """The server's major version; 0 until it is known."""
        self.share(connections)

    def harden(self, *, major: int, superuser: bool) -> None:
        """Give future sessions the settings that this version has and this role may give."""
        self.major = major
        for since, settings in _SINCE.items():
            self._settings |= settings if major >= since else {}
        if superuser:
            self._settings |= _OF_SUPERUSERS
        if major >= _LOGIN_TRIGGERS_MAJOR and superuser:
            self._settings |= _OF_SUPERUSERS_FROM_17

    def abandon(self) -> None:
        """Close every open connection at once; the statements on them fail.

        This is for a network that silently dropped the connections: new ones may work long before
        each statement has exceeded its time limit.
        """
        self._idle.clear()
        for session in list(self._open):
            session.abort()

    def share(self, connections: int) -> None:
        """Set how many connections of each kind there may be, before any is in use.

        A task that holds a connection to another database never waits for one to the maintenance
        database, so the two kinds cannot cause a deadlock.
        """
        self.connections = 2 * connections
        self._control_places = anyio.Semaphore(connections)
        self._session_places = anyio.Semaphore(connections)

    async def connect(
        self,
        database: str,
        *,
        seconds: float = CONNECT_SECONDS,
        settings: Mapping[str, str] = NO_SETTINGS,
        statements: int = 0,
    ) -> Session:
        """Open a connection that does not count against the limits.

        Args:
            database: to connect to.
            seconds: time limit.
            settings: of the session; they override those of the database and of the role.
            statements: how many prepared statements to keep, for a connection that is used often.

        Raises:
            ServerUnavailableError, StatementError: no connection was left open.
        """
        where = f"{self.endpoint.host}, port {self.endpoint.port}"
        with translated(f"connecting to {database} at {where}", CONNECT_REMEDIES):
            connection = await asyncpg.connect(
                dsn=self.endpoint.asyncpg_url(database),
                timeout=seconds,
                statement_cache_size=statements,
                max_cacheable_statement_size=_LARGEST_PREPARED_BYTES,
                server_settings=self._startup(settings),
            )
        session = Session(connection)
        self._open.add(session)
        session.on_end(lambda: self._open.discard(session))
        return session

    def _startup(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the settings with which a session is opened."""
        whole = {
            "application_name": self.application_name,
            "statement_timeout": str(_milliseconds(STATEMENT_SECONDS)),
            **self._settings,
            **settings,
        }
        return {name: value for name, value in whole.items() if value != _LEFT_ALONE}

    @asynccontextmanager
    async def session(
        self, database: str, settings: Mapping[str, str] = NO_SETTINGS, *, awaited: bool = True
    ) -> AsyncIterator[Session]:
        """A connection for one use, closed afterwards.

        Args:
            database: to connect to.
            settings: of the session.
            awaited: whether to wait until the connection is closed in an orderly way.
        """
        async with self._session_places:
            session = await self.connect(database, settings=settings)
            try:
                yield session
            except BaseException:
                await session.close()
                raise
            if awaited:
                await session.close()
            else:
                session.abort()

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Session]:
        """A connection to the maintenance database, kept for the next use if nothing went wrong."""
        async with self._control_places:
            session = self._take_idle() or await self.connect(
                self.endpoint.maintenance, statements=_PREPARED
            )
            try:
                yield session
            except StatementError:
                self._keep(session)
                raise
            except BaseException:
                # It was cut or cancelled, or was too slow: the server may still be working on it.
                await session.close()
                raise
            self._keep(session)

    async def ddl(
        self,
        sql: str,
        *,
        seconds: float = STATEMENT_SECONDS,
        settings: Mapping[str, str] = NO_SETTINGS,
    ) -> None:
        """Run one statement on a control connection, outside any transaction.

        Args:
            sql: the statement.
            seconds: time limit.
            settings: to be given to the session first; later statements may find them set.

        When this raises, the statement is over on the server too: it was refused or cancelled
        there, or its backend was ended. So a CREATE DATABASE that failed does not succeed later.
        """
        async with self.control() as session:
            pid = session.pid
            try:
                for name, value in settings.items():
                    await session.set(name, value)
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
        """End a backend of the daemon's and wait until it is gone, unless the server is gone."""
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
