"""Grants come first: jobs begin when no request is waiting, or after a limit of time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from clonepool.config import AccessSection
from clonepool.core import events
from clonepool.core.decisions import CreateClone, Drop, Recycle
from clonepool.observe.metrics import Metrics
from clonepool.service.api.access import Gatekeeper
from clonepool.service.api.listener import Listener
from clonepool.service.api.peer import CALLS_AT_A_TIME
from clonepool.service.job_queue import LONGEST_HOLD_SECONDS, QUIET_SECONDS, JobQueue
from clonepool.service.resources import Resources
from support.api import make_api
from support.pools import make_fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from clonepool.service.dispatcher import Dispatcher
    from clonepool.service.job_queue import Work

REFILL = CreateClone("blog", "abcdefgh", "clone")
RECYCLE = Recycle("blog", "abcdefgh", "clone")
CLIENTS = 3
READY = 500
"""Clones, more than are leased: each acquire is a hit, and sets off a refill."""


class Loop:
    """An event loop that takes its turns when the test says so."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.now = 0.0

    def call_soon(self, what: Callable[[], None]) -> None:
        self.soon.append(what)

    def call_later(self, seconds: float, what: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, what))

    def turn(self) -> None:
        """Run what was to be called soon before this turn began."""
        for _ in range(len(self.soon)):
            self.soon.popleft()()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and timers go off that are due."""
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, what in due:
            what()

    def create_future(self) -> None:
        raise AssertionError("nothing waits here")


class Room:
    """A queue on such a loop."""

    def __init__(self) -> None:
        self.requests = SimpleNamespace(requests_read=0)
        self.loop = Loop()
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.queue = JobQueue(self.requests, loop, lambda: self.loop.now)

    def released(self) -> list[Work]:
        """Return the jobs that can be had without waiting."""
        try:
            self.queue.get().send(None)
        except StopIteration as done:
            jobs: list[Work] = done.value
            return jobs
        except AssertionError:
            return []
        raise AssertionError("it waits for something else")


def test_a_job_that_somebody_waits_for_begins_after_one_look_at_the_sockets() -> None:
    room = Room()
    room.queue.put(RECYCLE, waited_for=True)
    room.loop.turn()
    assert room.released() == []  # the sockets are looked at between these turns
    room.loop.turn()
    assert room.released() == [RECYCLE]
    assert not room.loop.soon, "an idle queue takes no turns"
    assert not room.loop.timers


def test_it_does_not_begin_while_each_look_finds_a_request() -> None:
    room = Room()
    room.queue.put(RECYCLE, waited_for=True)
    room.loop.turn()
    for _ in range(20):
        room.requests.requests_read += 1
        room.loop.turn()
        assert room.released() == []
    room.loop.turn()
    assert room.released() == [RECYCLE]


@pytest.mark.parametrize("waited_for", [True, False])
def test_no_flood_of_requests_keeps_a_job_from_beginning(waited_for: bool) -> None:
    room = Room()
    room.queue.put(REFILL, waited_for=waited_for)
    while room.loop.now < LONGEST_HOLD_SECONDS + QUIET_SECONDS:
        room.requests.requests_read += 1
        room.loop.pass_time(0.0005)
        room.loop.turn()
    room.loop.turn()
    assert room.released() == [REFILL]


def test_a_refill_begins_when_no_request_has_come_for_a_while() -> None:
    room = Room()
    room.queue.put(REFILL, waited_for=False)
    for _ in range(2):
        room.requests.requests_read += 1
        room.loop.pass_time(QUIET_SECONDS)
        for _ in range(3):
            room.loop.turn()
        assert room.released() == []
    room.loop.pass_time(QUIET_SECONDS)
    for _ in range(2):
        room.loop.turn()
    assert room.released() == [REFILL]


def test_jobs_that_are_held_begin_with_one_that_somebody_waits_for() -> None:
    room = Room()
    room.queue.put(REFILL, waited_for=False)
    room.queue.put(RECYCLE, waited_for=True)
    for _ in range(2):
        room.loop.turn()
    assert room.released() == [REFILL, RECYCLE]
    room.loop.pass_time(1.0)
    assert not room.loop.soon


def test_they_begin_when_somebody_begins_to_wait() -> None:
    room = Room()
    room.queue.hurry()
    assert not room.loop.soon
    room.queue.put(REFILL, waited_for=False)
    room.queue.hurry()
    for _ in range(2):
        room.loop.turn()
    assert room.released() == [REFILL]


class Clients:
    """Connections to a listener whose jobs are noted and done in no time."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        loop = asyncio.get_running_loop()
        metrics, access = Metrics(CollectorRegistry(), []), AccessSection()
        self.listener = Listener(place / "socket", metrics, access, Gatekeeper(access))
        stack.callback(self.listener.close)
        fleet, _ = make_fleet(2 * READY, ready_templates=False, blog=(READY, 2 * READY))
        # Time stands still: no job is let go because it has waited for too long.
        queue = JobQueue(self.listener, loop, lambda: 0.0)
        self.dispatcher, methods = make_api(fleet, queue, self.listener, loop, lambda: 0.0)
        self.begun: list[tuple[str, int]] = []
        self._stack = stack
        self._executor = asyncio.create_task(self._run(queue, self.dispatcher))
        stack.callback(self._executor.cancel)
        self.listener.open(methods, Resources(lambda: 0.0))
        self.dispatcher.handle(events.TemplateReady("blog", "abcdefgh"))

    async def connect(self) -> socket.socket:
        """Return a connection that has been accepted."""
        client = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(self.listener.path))
        before = len(self.listener.peers)
        while len(self.listener.peers) == before:
            await asyncio.sleep(0)
        client.setblocking(False)
        return client

    async def rest(self) -> None:
        """Wait until the pool is full, and forget the jobs that were needed for it."""
        while self.dispatcher.fleet.pools["blog"].ready < READY:
            await asyncio.sleep(0)
        self.begun.clear()

    async def first_job(self) -> tuple[str, int]:
        """Return the first job since `rest`, and how many requests had been read when it began."""
        while not self.begun:
            await asyncio.sleep(0)
        return self.begun[0]

    async def _run(self, queue: JobQueue, dispatcher: Dispatcher) -> None:
        while True:
            for job in await queue.get():
                self.begun.append((type(job).__name__, self.listener.requests_read))
                match job:
                    case CreateClone(template, _, clone):
                        dispatcher.handle(events.CloneCreated(template, clone))
                    case Recycle(template, _, clone):
                        dispatcher.handle(events.CloneRewound(template, clone))
                    case Drop(template, clone):
                        dispatcher.handle(events.CloneDropped(template, clone))
                    case _:
                        raise AssertionError(f"no client asks for this here: {job}")


def lines(method: str, *each: Mapping[str, object]) -> bytes:
    """Return one request for each of these parameters."""
    return b"".join(
        json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n"
        for number, params in enumerate(each)
    )


async def replies(client: socket.socket, count: int) -> list[dict[str, Any]]:
    """Read a number of replies."""
    found, loop = b"", asyncio.get_running_loop()
    while found.count(b"\n") < count:
        found += await loop.sock_recv(client, 1 << 16)
    return [json.loads(line) for line in found.splitlines()]


@pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("times", [1, 3 * CALLS_AT_A_TIME])
def test_all_requests_that_can_be_read_are_answered_before_any_job_begins(
    tmp_path: Path, factory: Callable[[], asyncio.AbstractEventLoop], times: int
) -> None:
    async def ask() -> None:
        with ExitStack() as stack:
            clients = Clients(tmp_path, stack)
            several = [await clients.connect() for _ in range(CLIENTS)]
            await clients.rest()

            before = clients.listener.requests_read
            # Everything is in the sockets before the loop looks at any of them.
            for client in several:
                client.send(lines("acquire", *[{"template": "blog"}] * times))
            found = [await replies(client, times) for client in several]
            assert all(reply["result"]["source"] == "ready" for each in found for reply in each)
            assert await clients.first_job() == ("CreateClone", before + CLIENTS * times)

            await clients.rest()
            before = clients.listener.requests_read
            for client, each in zip(several, found, strict=True):
                leases = [{"lease": reply["result"]["lease"]} for reply in each]
                client.send(lines("release", *leases))
            assert await clients.first_job() == ("Recycle", before + CLIENTS * times)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(ask(), 60))
