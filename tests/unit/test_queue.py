"""The queue: order, deadlines, and the cost when it is long."""

from __future__ import annotations

import msgspec

from clonepool.core.decisions import Lease
from clonepool.core.queue import WaitQueue
from support.pools import request

LEASE = Lease("t", "blog", "g", "c", 1, "l", 0.0)


def popped(line: WaitQueue) -> int:
    request = line.pop()
    assert request is not None
    return request.waiter


def test_a_request_for_a_fresh_clone_is_passed_over_while_there_is_none() -> None:
    line = WaitQueue()
    line.add(msgspec.structs.replace(request(1), fresh=True))
    line.add(request(2))
    assert line.fresh == 1
    passed = line.pop(fresh=False)
    assert passed is not None
    assert passed.waiter == 2
    assert line.pop(fresh=False) is None
    assert popped(line) == 1
    assert line.fresh == 0


def test_the_first_come_is_the_first_served() -> None:
    line = WaitQueue()
    for waiter in (3, 1, 2):
        line.add(request(waiter))
    assert [popped(line) for _ in range(3)] == [3, 1, 2]


def test_a_request_that_continues_a_lease_goes_before_those_that_do_not() -> None:
    line = WaitQueue()
    line.add(request(1))
    line.add(msgspec.structs.replace(request(2), continues=LEASE))
    assert [popped(line) for _ in range(2)] == [2, 1]
    assert line.position(2) is None


def test_deadlines_come_in_their_own_order_and_those_served_have_none() -> None:
    line = WaitQueue()
    for waiter, timeout in ((1, 9.0), (2, 3.0), (3, 6.0), (4, 3.0)):
        line.add(request(waiter, timeout=timeout))
    assert line.first_deadline() == 3.0
    line.remove(2)
    assert [r.waiter for r in line.pop_overdue(6.0)] == [4, 3]
    assert line.first_deadline() == 9.0
    assert popped(line) == 1
    assert line.first_deadline() is None


def test_a_line_through_which_many_pass_does_not_grow() -> None:
    line = WaitQueue()
    for waiter in range(10_000):
        line.add(request(waiter, timeout=1000.0 + waiter))
        if waiter >= 10:
            line.pop()
    assert len(line) == 10
    assert len(line._deadlines._heap) < 200
