"""One connection to a server, with a time limit for each statement."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg

from clonepool.errors import ServerUnavailableError
from clonepool.postgres.quoting import literal
from clonepool.postgres.server_errors import translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Connection = asyncpg.Connection[asyncpg.Record]

STATEMENT_SECONDS = 10.0
"""Time limit of a statement, unless another is given."""
CLOSE_SECONDS = 2.0
"""Time limit of closing a connection in an orderly way."""
GRACE_SECONDS = 2.0
"""Time by which a statement's limit here exceeds the server's own `statement_timeout`."""


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
        self._server_timeout = milliseconds(STATEMENT_SECONDS)
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
        """Set a setting of this session, unless it has that value already.

        A kept connection keeps the value. So code that depends on a setting must set it each time.
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
        """Give the server the time limit of the next statement, if it is another one."""
        timeout = milliseconds(seconds)
        if timeout != self._server_timeout:
            await self._connection.execute(
                f"SET statement_timeout = {timeout}", timeout=STATEMENT_SECONDS
            )
            self._server_timeout = timeout


def milliseconds(seconds: float) -> int:
    """Return a time as `statement_timeout` takes it."""
    return math.ceil(seconds * 1000)
