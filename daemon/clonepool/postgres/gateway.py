"""Connections to one server: how they are opened, shared, and closed.

A connection to a clone or template is opened for one use. A few connections to the maintenance
database are kept for DDL. asyncpg's pool is not used: its release relies on `asyncio.shield`, which
abandons the inner task inside a cancelled anyio scope.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio
import asyncpg

from clonepool.errors import ServerUnavailableError, StatementError
from clonepool.postgres.server_errors import CONNECT_REMEDIES, translated
from clonepool.postgres.session import STATEMENT_SECONDS, Session, milliseconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from clonepool.postgres.endpoint import Endpoint

CONNECT_SECONDS = 10.0
"""Time limit of opening a connection."""

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
_LOGIN_TRIGGERS_MAJOR = 17
_LARGEST_PREPARED_BYTES = 128 * 1024
"""Length of a statement beyond which it is not prepared for later use."""
_PREPARED = 16
"""Number of prepared statements of a connection that is kept."""


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
            "statement_timeout": str(milliseconds(STATEMENT_SECONDS)),
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
