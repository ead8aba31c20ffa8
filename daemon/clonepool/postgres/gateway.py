"""Connections to one server: opened, bounded in time, and their errors translated once.

Connections to clones and templates are opened for one use. A few to the maintenance database are
kept for DDL. No pool of asyncpg is used: its release leans on `asyncio.shield`, which abandons
the inner task inside a cancelled anyio scope.
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
STATEMENT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
GRACE_SECONDS = 2.0
"""How much later than the server's own `statement_timeout` we stop waiting for its word."""

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_LEFT_ALONE = "\0"
_OF_EVERY_SESSION: Mapping[str, str] = MappingProxyType(
    {
        # With a search_path of others, names in our queries would mean functions of theirs, and run
        # with our rights: in any database, that one too that clients may not enter.
        "search_path": "pg_catalog",
        "role": "none",
        "default_transaction_read_only": "off",
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        # Each statement has a deadline of ours, and connections are kept.
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        # One library that is not there would keep us out.
        "local_preload_libraries": "",
        # How our statements and the answers to them are read.
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
        # A refused statement is the end of that statement.
        "exit_on_error": "off",
        "client_min_messages": "warning",
        "vacuum_cost_delay": "0",
    }
)
"""Whatever a database, a role or the whole server was given by ALTER … SET."""
_SINCE: Mapping[int, Mapping[str, str]] = MappingProxyType(
    {14: {"idle_session_timeout": "0"}, 17: {"transaction_timeout": "0"}}
)
"""Older versions refuse a connection that names them."""
_OF_SUPERUSERS: Mapping[str, str] = MappingProxyType(
    {"session_preload_libraries": "", "session_replication_role": "origin"}
)
"""Others may not set these."""
_OF_SUPERUSERS_FROM_17: Mapping[str, str] = MappingProxyType({"event_triggers": "off"})
"""A trigger on login must not run with our rights."""
OWN_NAMES: Mapping[str, str] = MappingProxyType({"search_path": _LEFT_ALONE})
"""For a session whose only statements are to find the database's own search_path."""
_EXHAUSTED = {"53100": Limit.STORAGE, "53300": Limit.CONNECTIONS}
_LOGIN_TRIGGERS_MAJOR = 17
_LARGEST_PREPARED_BYTES = 128 * 1024
_PREPARED = 16
"""Statements that stay prepared on a connection that is kept."""
_UNDEFINED_FILE = "58P01"
"""A library that is not installed, say: a matter of the statement."""
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
def translated(doing: str, remedies: Mapping[str, str] = NO_SETTINGS) -> Iterator[None]:
    """Turn asyncpg's errors into ours.

    Args:
        doing: what is being done, for people.
        remedies: what they can do, by SQLSTATE; by an empty one when there was no answer.

    Raises:
        ResourceError: the server's disk is full, its connections are used up, or this machine is
            short of files or memory.
        ServerUnavailableError: not reached, cut, out of other resources, or too slow.
        StatementError: refused by the server, with its SQLSTATE.
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
    """Return the beginning of a statement for people: one line, and no password."""
    return sql.strip().split("\n", 1)[0].partition(" PASSWORD ")[0][:100]


class _Written:
    """Collects what COPY writes. Not a file: asyncpg hands those to a thread, piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    async def add(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def get(self) -> bytes:
        return b"".join(self._pieces)


class Session:
    """One connection, each statement with a deadline of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._server_timeout = _milliseconds(STATEMENT_SECONDS)
        self._set: dict[str, str] = {}

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

    async def set(self, name: str, value: str) -> None:
        """Give a setting of this session a value, unless it was given that before.

        A kept connection keeps it: who depends on a setting sets it each time.
        """
        if self._set.get(name) != value:
            await self.execute(f"SET {name} = {literal(value)}")
            self._set[name] = value

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

    async def lines(self, query: str) -> list[bytes]:
        """Run a query of one statement and return its rows as COPY writes them, each a line.

        It costs one round trip, and nothing is decoded that nobody looks at.
        """
        written = _Written()
        with translated(_shown(query)):
            await self._connection.copy_from_query(
                query, output=written.add, timeout=STATEMENT_SECONDS
            )
        return written.get().splitlines()

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
        milliseconds = _milliseconds(seconds)
        if milliseconds != self._server_timeout:
            await self._connection.execute(
                f"SET statement_timeout = {milliseconds}", timeout=STATEMENT_SECONDS
            )
            self._server_timeout = milliseconds


def _milliseconds(seconds: float) -> int:
    """Return the time for `statement_timeout`."""
    return math.ceil(seconds * 1000)


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
        self._settings = dict(_OF_EVERY_SESSION)
        self.major = 0
        """The server's version, 0 until it is known."""
        self.share(connections)

    def harden(self, *, major: int, superuser: bool) -> None:
        """Give sessions from now on what only some servers have, and some roles may set."""
        self.major = major
        for since, settings in _SINCE.items():
            self._settings |= settings if major >= since else {}
        if superuser:
            self._settings |= _OF_SUPERUSERS
        if major >= _LOGIN_TRIGGERS_MAJOR and superuser:
            self._settings |= _OF_SUPERUSERS_FROM_17

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

    async def connect(
        self,
        database: str,
        *,
        seconds: float = CONNECT_SECONDS,
        settings: Mapping[str, str] = NO_SETTINGS,
        statements: int = 0,
    ) -> Session:
        """Open a connection, beside those that are counted.

        Args:
            database: where to.
            seconds: how long it may take.
            settings: of the session; they come before those of the database and of the role.
            statements: how many of them may stay prepared, for a connection that is used often.

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
        """Return the settings with which a session begins."""
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
            database: where to.
            settings: of the session.
            awaited: whether to wait until the server has taken leave, too.
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
                # Cut, late or cancelled: what the server does with it now is not known.
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
            seconds: how long it may take.
            settings: of the session, set before; others may find them set later.

        When this raises, the statement is over on the server too: it was refused or cancelled
        there, or its backend was ended. So a CREATE DATABASE that failed does not come true later.
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
