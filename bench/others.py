"""Rollback and pytest-postgresql: other ways to give each test a database.

The clients of `clients.Crowd` use them like leases. IntegreSQL, which is a server of its own, is in
`integresql`; plain CREATE and DROP is in `plain`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg

from bench import work
from clonepool.postgres.endpoint import from_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.plain import Plain

PYTEST_POSTGRESQL = "pytest-postgresql"


class Rollback:
    """One database and one connection for all tests of a client; each test is rolled back.

    Each client has a database of its own: tests of several clients that change the same rows of
    one database would wait for each other's transactions.
    """

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], url: str) -> None:
        self._connection = connection
        self._url = url

    async def get(self) -> str:
        """Begin a transaction."""
        await self._connection.execute("BEGIN")
        return self._url

    async def use(self, url: str) -> float:
        """Run the test's statements on the kept connection, whatever the URL."""
        del url
        await self._connection.execute(work.WRITES)
        return 0.0

    async def give_back(self) -> None:
        """Roll the test back."""
        await self._connection.execute("ROLLBACK")


@asynccontextmanager
async def rollback(plain: Plain, template: str) -> AsyncIterator[Rollback]:
    """Create the client's database, connect to it, and drop it at the end."""
    url = await plain.create(template, "file_copy")
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        yield Rollback(connection, url)
    finally:
        await connection.close()
        await plain.drop()


class PytestPostgresql:
    """What the fixture `postgresql` of pytest-postgresql does before and after each test.

    With the package installed its `DatabaseJanitor` does it. Without it, the same statements are
    sent in the same order, each time over a new connection of psycopg.

    Args:
        url: of any database on the server, as a superuser.
        template: the database of which the test's database is a copy.
    """

    def __init__(self, url: str, template: str) -> None:
        endpoint = from_url(url)
        database = f"janitor_{os.getpid()}"
        self._url = endpoint.url(database)
        self._janitor: Any
        if version():
            janitor = importlib.import_module("pytest_postgresql.janitor").DatabaseJanitor
            self._janitor = janitor(
                user=endpoint.user,
                host=endpoint.host,
                port=endpoint.port,
                password=endpoint.password or None,
                dbname=database,
                template_dbname=template,
            )
        else:
            self._janitor = SameStatements(endpoint.url("postgres"), database, template)

    async def get(self) -> str:
        """Create the database. The client's only task waits, so blocking it costs nothing."""
        self._janitor.init()
        return self._url

    async def use(self, url: str) -> float:
        """Connect and run the test's statements."""
        return await work.visit(url, work.WRITES)

    async def give_back(self) -> None:
        """Drop the database."""
        self._janitor.drop()


class SameStatements:
    """The statements of pytest-postgresql 10's DatabaseJanitor, for where it is not installed."""

    def __init__(self, url: str, database: str, template: str) -> None:
        self._url = url
        self._database = database
        self._template = template

    def init(self) -> None:
        """End the sessions on the template and copy it."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            self._end_sessions(connection, self._template)
            connection.execute(f'CREATE DATABASE "{self._database}" TEMPLATE "{self._template}"')

    def drop(self) -> None:
        """End the sessions on the database and drop it."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            exists = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(exists, (self._database,)).fetchone() is None:
                return
            connection.execute(f'ALTER DATABASE "{self._database}" WITH allow_connections false')
            self._end_sessions(connection, self._database)
            connection.execute(f'DROP DATABASE IF EXISTS "{self._database}"')

    @staticmethod
    def _end_sessions(connection: psycopg.Connection, database: str) -> None:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,)
        )


def version() -> str:
    """Return the version of pytest-postgresql that is installed, or an empty string."""
    try:
        return importlib.metadata.version(PYTEST_POSTGRESQL)
    except importlib.metadata.PackageNotFoundError:
        return ""
