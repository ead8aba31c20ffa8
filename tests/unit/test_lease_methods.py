"""A connection never holds more leases than its limit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from clonepool.core import events
from clonepool.core.decisions import CreateClone
from clonepool.errors import ClientLimitError
from clonepool.protocol.messages import Acquire, Release
from clonepool.service.api.leases import LeaseMethods
from clonepool.service.call import Call
from support.api import make_api
from support.connections import FakeConnection
from support.pools import make_fleet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from clonepool.service.job_queue import Work

MAX_LEASES = 3


class Loop:
    """Does at once what is to be done soon; time stands still."""

    def call_soon(self, what: Callable[[], None]) -> None:
        what()

    def call_later(self, *_: object) -> Any:
        return SimpleNamespace(cancel=lambda: None)


class FakeQueue:
    """Remembers what is to be done."""

    def __init__(self) -> None:
        self.put_off: list[Work] = []

    def put(self, work: Work, *, waited_for: bool) -> None:
        del waited_for
        self.put_off.append(work)

    def hurry(self) -> None:
        """Nothing waits here."""


class Room:
    """One client, and more clones than it may have."""

    def __init__(self) -> None:
        fleet, _ = make_fleet(ready_templates=False, blog=(20, 20))
        jobs, loop = FakeQueue(), cast("asyncio.AbstractEventLoop", Loop())
        nobody = cast("Any", SimpleNamespace(is_connected=lambda _: False))
        self.dispatcher, _ = make_api(fleet, jobs, nobody, loop, lambda: 0.0)
        self.dispatcher.handle(events.TemplateReady("blog", "abcdefgh"))
        for job in list(jobs.put_off):
            assert isinstance(job, CreateClone)
            self.dispatcher.handle(events.CloneCreated("blog", job.clone))
        steps = cast("Any", None)
        self.methods = LeaseMethods(
            self.dispatcher, steps, acquire_timeout=5.0, max_leases=MAX_LEASES
        )
        self.client = FakeConnection()
        self._calls = 0

    def acquire(self, **params: Any) -> str:
        """Return the token of a new lease."""
        self.methods.acquire(self.call(), Acquire("blog", **params))
        token: str = self.client.results[-1]["lease"]
        return token

    def release(self, token: str) -> None:
        self.methods.release(self.call(), Release(token))

    def call(self) -> Call:
        self._calls += 1
        return Call(self.client, self._calls, self._calls)


def test_it_may_have_as_many_as_the_limit_says_and_no_more() -> None:
    room = Room()
    tokens = [room.acquire() for _ in range(MAX_LEASES)]
    for _ in range(2):
        with pytest.raises(ClientLimitError, match="holds 3 leases"):
            room.acquire()
    room.release(tokens[0])
    room.acquire()
    with pytest.raises(ClientLimitError):
        room.acquire()


def test_leases_that_were_given_back_do_not_count() -> None:
    room = Room()
    for _ in range(3 * MAX_LEASES):
        room.release(room.acquire())
    for _ in range(MAX_LEASES):
        room.acquire()
    with pytest.raises(ClientLimitError):
        room.acquire()


def test_leases_that_were_waited_for_count_as_any_other() -> None:
    room = Room()
    room.dispatcher.handle(events.GrantsHeld())
    for _ in range(MAX_LEASES + 1):
        room.methods.acquire(room.call(), Acquire("blog"))
    room.dispatcher.handle(events.GrantsResumed())
    with pytest.raises(ClientLimitError, match="holds 4 leases"):
        room.acquire()
