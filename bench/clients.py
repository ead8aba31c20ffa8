"""Clients that work without a pause, each a process with one event loop, on one order at a time.

Whichever way they come by their databases, what they do with them is the same code.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec
import uvloop

from bench import work
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
        got: what each wait for a database took.
        gave: what it took each time to be rid of it.
        took: from the start to the end of the last turn.
        cpu: that the client itself used.
        backend_cpu: that its own connections used, in the server.
    """

    got: list[float]
    gave: list[float]
    took: float
    cpu: float
    backend_cpu: float = 0.0


class _Source(Protocol):
    """Where databases come from and go to."""

    async def get(self) -> str:
        """Return the URL of a database."""

    async def give_back(self) -> None:
        """Be rid of it."""


class _Leases:
    """From the daemon; its synchronous client has the process to itself while it waits."""

    def __init__(self, client: Client, template: str) -> None:
        self._client = client
        self._template = template

    async def get(self) -> str:
        """Lease."""
        self._lease = self._client.lease(self._template, timeout=WAIT_SECONDS)
        return self._lease.url

    async def give_back(self) -> None:
        """Release."""
        self._lease.release()


class _ByHand:
    """Made and dropped by the client itself, over a connection that stays open."""

    def __init__(self, plain: Plain, source: str, strategy: str) -> None:
        self._plain = plain
        self._source = source
        self._strategy = strategy

    async def get(self) -> str:
        """Create."""
        return await self._plain.create(self._source, self._strategy)

    async def give_back(self) -> None:
        """Drop."""
        await self._plain.drop()


class Crowd:
    """Client processes, started once and before anything is measured.

    Args:
        count: of processes.
        socket_path: the daemon's.
        url: of any database on its server, as a superuser.
    """

    def __init__(self, count: int, socket_path: str, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, socket_path, url), daemon=True)
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
        """Have so many clients get ready to work that way for that long."""
        self._at_work = self._pipes[:clients]
        for pipe in self._at_work:
            pipe.send((way, seconds))
        for pipe in self._at_work:
            pipe.recv()

    def work(self) -> list[Shift]:
        """Let those who are ready work, all at once, and return what each did.

        Raises:
            EOFError: one of them failed; it said why on stderr.
        """
        for pipe in self._at_work:
            pipe.send("go")
        return [pipe.recv() for pipe in self._at_work]


def _serve(pipe: Connection, socket_path: str, url: str) -> None:
    try:
        uvloop.run(_obey(pipe, socket_path, url))
    except (EOFError, BrokenPipeError):
        return  # the measurement is over


async def _obey(pipe: Connection, socket_path: str, url: str) -> None:
    while True:
        way, seconds = pipe.recv()
        async with _open(way, socket_path, url) as source:
            pipe.send("ready")
            pipe.recv()
            shift = await _work(source, seconds)
        pipe.send(shift)


@asynccontextmanager
async def _open(way: str, socket_path: str, url: str) -> AsyncIterator[_Source]:
    if way in LEASES:
        with Client(socket_path) as client:
            yield _Leases(client, way)
        return
    async with Plain(url) as plain:
        yield _ByHand(plain, await plain.generation(LEASES[0]), way)


async def _work(source: _Source, seconds: float) -> Shift:
    """Get a database, write to it, give it back, and again until time is up."""
    shift = Shift([], [], 0.0, 0.0)
    cpu, began = time.process_time(), time.perf_counter()
    while shift.took < seconds:
        asked = time.perf_counter()
        url = await source.get()
        shift.got.append(time.perf_counter() - asked)
        shift.backend_cpu += await work.visit(url, work.WRITES)
        done = time.perf_counter()
        await source.give_back()
        shift.gave.append(time.perf_counter() - done)
        shift.took = time.perf_counter() - began
    shift.cpu = time.process_time() - cpu
    return shift
