"""Waiting for conditions inside the process, without polling."""

from __future__ import annotations

import anyio
import pytest

from clonepool.service.state_changes import StateChanges

pytestmark = pytest.mark.anyio


async def test_a_task_goes_on_once_its_predicate_holds_and_no_sooner() -> None:
    changed, order, left = StateChanges(), list[str](), 2

    async def wait() -> None:
        await changed.wait_for(lambda: left == 0)
        order.append("settled")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        while left:
            left -= 1
            order.append(f"{left} left")
            changed.notify()
            await anyio.wait_all_tasks_blocked()
            if left:
                assert order[-1] == f"{left} left"
    assert order == ["1 left", "0 left", "settled"]


async def test_what_holds_already_is_not_waited_for() -> None:
    with anyio.fail_after(0):
        await StateChanges().wait_for(lambda: True)


async def test_however_often_it_is_notified_predicates_are_checked_once() -> None:
    changed, checks = StateChanges(), 0

    def never() -> bool:
        nonlocal checks
        checks += 1
        return False

    other = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(changed.wait_for, never)
        await anyio.wait_all_tasks_blocked()
        assert checks == 1
        for _ in range(1000):
            changed.notify()
        with anyio.fail_after(5):
            await changed.wait_for(lambda: checks > 1)
        assert checks == 2
        other.set()
        tasks.cancel_scope.cancel()


async def test_a_waiter_that_is_cancelled_leaves_nothing_to_be_checked() -> None:
    changed, checks = StateChanges(), 0

    def count() -> bool:
        nonlocal checks
        checks += 1
        return False

    with anyio.move_on_after(0):
        await changed.wait_for(count)
    before = checks
    done = False

    async def other() -> None:
        await changed.wait_for(lambda: done)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await anyio.wait_all_tasks_blocked()
        done = True
        changed.notify()
    assert checks == before
