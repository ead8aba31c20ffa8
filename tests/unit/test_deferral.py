"""Drops that wait for their turn, and what wakes them."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from clonepool.service.jobs.deferral import DropQueue
from clonepool.service.jobs.drop_schedule import Governor, Scene

pytestmark = pytest.mark.anyio


class Stage:
    """A scene that the test changes."""

    def __init__(self, most: int = 9) -> None:
        self.scene = Scene(busy=True)
        self.looks = 0
        self.deferral = DropQueue(self._look, Governor(most), asyncio.get_running_loop().time)
        self.begun: list[str] = []

    def _look(self) -> Scene:
        self.looks += 1
        return self.scene

    async def drop(self, name: str) -> None:
        async with self.deferral.turn(name, asyncio.get_running_loop().time()):
            self.begun.append(name)

    def show(self, scene: Scene) -> None:
        self.scene = scene
        self.deferral.stir()


async def test_a_drop_begins_when_nobody_waits_any_more() -> None:
    stage = Stage()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.drop, "a")
        tasks.start_soon(stage.drop, "b")
        await anyio.wait_all_tasks_blocked()
        assert stage.begun == []
        stage.show(Scene(busy=False))
        with anyio.fail_after(1):
            while len(stage.begun) < 2:
                await anyio.sleep(0.001)
    assert stage.begun == ["a", "b"]


async def test_a_drop_that_has_become_urgent_goes_before_older_ones() -> None:
    stage = Stage()
    async with anyio.create_task_group() as tasks:
        for name in ("a", "b"):
            tasks.start_soon(stage.drop, name)
        await anyio.wait_all_tasks_blocked()
        stage.show(Scene(busy=True, urgent=frozenset({"b"})))
        with anyio.fail_after(1):
            while not stage.begun:
                await anyio.sleep(0.001)
        assert stage.begun == ["b"]
        tasks.cancel_scope.cancel()


async def test_nothing_is_looked_at_when_nothing_is_to_be_dropped() -> None:
    stage = Stage()
    stage.show(Scene(busy=False))
    await stage.drop("a")
    looks = stage.looks
    for _ in range(100):
        stage.deferral.stir()
    await anyio.sleep(0.02)
    assert stage.looks == looks


async def test_however_much_happens_it_is_looked_at_only_now_and_then() -> None:
    stage = Stage()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.drop, "a")
        await anyio.wait_all_tasks_blocked()
        looks = stage.looks
        for _ in range(1000):
            stage.deferral.stir()
        await anyio.sleep(0.02)
        assert stage.looks <= looks + 2
        tasks.cancel_scope.cancel()


async def test_a_drop_that_is_given_up_while_it_waits_leaves_nothing() -> None:
    stage = Stage(most=0)
    async with anyio.create_task_group() as tasks:
        async with stage.deferral.turn("first", 0.0):
            tasks.start_soon(stage.drop, "a")
            await anyio.wait_all_tasks_blocked()
            assert stage.begun == []
        tasks.cancel_scope.cancel()
    assert stage.deferral.waiting == 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.drop, "b")
        with anyio.fail_after(1):
            while not stage.begun:
                await anyio.sleep(0.001)
