"""Client processes that work without pauses, each with one event loop and one task at a time.

Each way to get a database is a source; the code that uses the database is the same for all.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec
import uvloop

from bench import work
from bench.integresql import IntegreSQL
from bench.others import PytestPostgresql, rollback
from bench.plain import Plain
from clonepool.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from multiprocessing.connection import Connection
    from types import TracebackType

WAIT_SECONDS = 60.0
LEASES = ("rewound", "connecting", "recreated")
"""Ways by a lease; also the names of the templates."""


class Shift(msgspec.Struct):
    """What one client did on one order; all times in seconds.

    Attributes:
        got: the wait for each database.
        gave: the time to give back each database.
        turns: the whole of each turn: get a database, use it, give it back.
        took: from the start of the first turn to the end of the last.
        cpu: CPU time of the client itself.
        backend_cpu: CPU time of its connections, in the server; 0 where it is not known.
    """

    got: list[float] = []
    gave: list[float] = []
    turns: list[float] = []
    took: float = 0.0
    cpu: float = 0.0
    backend_cpu: float = 0.0


class _Source(Protocol):
    """A way to get databases."""

    async def get(self) -> str:
        """Return the URL of a database that no other client uses at that time."""

    async def use(self, url: str) -> float:
        """Run a test on the database; return the CPU seconds of its connection, 0 if unknown."""

    async def give_back(self) -> None:
        """End the use of the database."""


class _Leases:
    """Leases of the daemon. The synchronous client may block: it is alone in its process."""

    def __init__(self, client: Client, template: str) -> None:
        self._client = client
        self._template = template

    async def get(self) -> str:
        """Lease."""
        self._lease = self._client.lease(self._template, timeout=WAIT_SECONDS)
        return self._lease.url

    async def use(self, url: str) -> float:
        """Connect and run the test's statements."""
        return await work.visit(url, work.WRITES)

    async def give_back(self) -> None:
        """Release."""
        self._lease.release()


class _ByHand:
    """Databases that the client creates and drops over a connection that stays open."""

    def __init__(self, plain: Plain, source: str, strategy: str) -> None:
        self._plain = plain
        self._source = source
        self._strategy = strategy

    async def get(self) -> str:
        """Create."""
        return await self._plain.create(self._source, self._strategy)

    async def use(self, url: str) -> float:
        """Connect and run the test's statements."""
        return await work.visit(url, work.WRITES)

    async def give_back(self) -> None:
        """Drop."""
        await self._plain.drop()


class Servers(msgspec.Struct, frozen=True):
    """The servers that the clients use.

    Attributes:
        socket_path: the daemon's socket.
        url: URL of any database on its PostgreSQL server, as a superuser.
        integresql: the port of IntegreSQL, or 0 if it is not measured.
    """

    socket_path: str
    url: str
    integresql: int = 0


class Crowd:
    """Client processes, started once and before anything is measured.

    Args:
        count: of processes.
        servers: that they use.
    """

    def __init__(self, count: int, servers: Servers) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, servers), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    def prepare(self, way: str, seconds: float, clients: int) -> None:
        """Prepare `clients` processes to work in one way for some seconds."""
        self._at_work = self._pipes[:clients]
        for pipe in self._at_work:
            pipe.send((way, seconds))
        for pipe in self._at_work:
            pipe.recv()

    def work(self) -> list[Shift]:
        """Let the clients that are ready work, all at once, and return what each did.

        Raises:
            EOFError: a client failed; its stderr says why.
        """
        for pipe in self._at_work:
            pipe.send("go")
        return [pipe.recv() for pipe in self._at_work]


def _serve(pipe: Connection, servers: Servers) -> None:
    try:
        uvloop.run(_obey(pipe, servers))
    except (EOFError, BrokenPipeError):
        return  # the measurement is over


async def _obey(pipe: Connection, servers: Servers) -> None:
    while True:
        way, seconds = pipe.recv()
        async with _open(way, servers) as source:
            pipe.send("ready")
            pipe.recv()
            shift = await _work(source, seconds)
        pipe.send(shift)


@asynccontextmanager
async def _open(way: str, servers: Servers) -> AsyncIterator[_Source]:
    if way in LEASES:
        with Client(servers.socket_path) as client:
            yield _Leases(client, way)
        return
    if way == "integresql":
        yield IntegreSQL(servers.integresql, servers.url)
        return
    async with Plain(servers.url) as plain:
        template = await plain.generation(LEASES[0])
        if way == "rollback":
            async with rollback(plain, template) as source:
                yield source
        elif way == "pytest_postgresql":
            yield PytestPostgresql(servers.url, template)
        else:
            yield _ByHand(plain, template, way)


async def _work(source: _Source, seconds: float) -> Shift:
    """Get a database, write to it, give it back, and again until time is up."""
    shift = Shift()
    cpu, began = time.process_time(), time.perf_counter()
    while shift.took < seconds:
        asked = time.perf_counter()
        url = await source.get()
        shift.got.append(time.perf_counter() - asked)
        shift.backend_cpu += await source.use(url)
        done = time.perf_counter()
        await source.give_back()
        ended = time.perf_counter()
        shift.gave.append(ended - done)
        shift.turns.append(ended - asked)
        shift.took = ended - began
    shift.cpu = time.process_time() - cpu
    return shift
