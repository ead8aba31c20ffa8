from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from clonepool.service.limiter import PriorityLimiter

pytestmark = pytest.mark.anyio


async def test_the_most_urgent_goes_first_whenever_it_came() -> None:
    limiter, order = PriorityLimiter(1), list[str]()

    async def work(name: str, rank: int) -> None:
        async with limiter.place(lambda: rank):
            order.append(name)

    async with anyio.create_task_group() as tasks, limiter.place(lambda: 0):
        for name, rank in (("drop", 2), ("refill", 1), ("test", 0), ("drop 2", 2)):
            tasks.start_soon(work, name, rank)
            await anyio.wait_all_tasks_blocked()
    assert order == ["test", "refill", "drop", "drop 2"]


async def test_a_refill_becomes_urgent_while_it_waits() -> None:
    limiter, order, ranks = PriorityLimiter(1), list[str](), {"a": 1, "b": 2}

    async def work(name: str) -> None:
        async with limiter.place(lambda: ranks[name]):
            order.append(name)

    async with anyio.create_task_group() as tasks, limiter.place(lambda: 0):
        for name in ranks:
            tasks.start_soon(work, name)
        await anyio.wait_all_tasks_blocked()
        ranks["b"] = 0
    assert order == ["b", "a"]


async def test_no_more_than_the_places_are_inside() -> None:
    limiter, inside, most = PriorityLimiter(2), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with limiter.place(lambda: 0):
            inside += 1
            most = max(most, inside)
            await anyio.lowlevel.checkpoint()
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(work)
    assert most == 2


async def test_cancelling_a_waiting_or_served_acquire_loses_no_place() -> None:
    limiter = PriorityLimiter(1)
    for serve_first in (False, True):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                async with limiter.place(lambda: 0):
                    tasks.start_soon(anyio.sleep_forever)

                    async def wait() -> None:
                        async with limiter.place(lambda: 0):
                            pass

                    tasks.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    if not serve_first:
                        scope.cancel()
                scope.cancel()
        with anyio.fail_after(1):
            async with limiter.place(lambda: 0):
                pass
