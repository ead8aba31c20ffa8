"""Edits during a build are never missed, and outdated clones are never granted."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import pytest

from clonepool.config import Config, PoolSection, TemplateSection
from clonepool.core.template import Condition
from clonepool.errors import ServerUnavailableError, TemplateFailedError
from clonepool.postgres.templates.recipe import Generation, Inputs
from support.building import BuilderHarness
from support.pools import request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from clonepool.postgres.clones.lifecycle import Contents
    from clonepool.postgres.templates.recipe import Recipe

pytestmark = pytest.mark.anyio
CONFIG = Config(
    templates={"shop": TemplateSection(sql=["a.sql"]), "upper": TemplateSection(extends="shop")}
)
OTHERS = {name: TemplateSection(sql=["a.sql"]) for name in ("first", "second", "third")}


async def _nothing() -> None:
    """Do nothing."""


class FakeBuilder:
    """Builds what `text` says, with a pause after its last look at that."""

    def __init__(self) -> None:
        self.text = "1"
        self.tried: dict[str, str] = {}
        self.built: list[str] = []
        self.after_last_look: dict[str, Callable[[], Awaitable[None]]] = {}
        self.generations = None
        self.looks = 0

    async def inputs(self, recipe: Recipe) -> Inputs:
        self.looks += 1
        entries = {"sql": {"a.sql": self.text}}
        if recipe.section.extends:
            if recipe.lower is None:
                raise TemplateFailedError("extends: not there")
            entries = {"extends": {"shop": recipe.lower.short}}
        await anyio.lowlevel.checkpoint()
        return Inputs([], [], entries)

    async def ensure(self, recipe: Recipe, _: Any, *, anew: bool) -> Generation:
        inputs = await self.inputs(recipe)
        self.tried[recipe.template] = inputs.full
        await self.after_last_look.pop(recipe.template, _nothing)()
        text = str(inputs.entries)
        self.built.append(recipe.template)
        if "nonsense" in text:
            raise TemplateFailedError("nonsense")
        contents = cast("Contents", SimpleNamespace(relations=1))
        return Generation(
            inputs.short, inputs.full, f"db_{inputs.short}", contents, 0,
            reused=anew, inputs=inputs.entries,
        )  # fmt: skip


class Room(BuilderHarness):
    """The builder of templates, with fakes around it."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.builder = FakeBuilder()
        self.granted: list[tuple[str, str]] = []
        super().__init__(config, self.builder, anyio.current_time, self.note)

    def note(self) -> None:
        """Remember what would be granted now."""
        for name, pool in self.fleet.pools.items():
            if pool.phase is Condition.READY and not pool.lifecycle.is_stale:
                self.granted.append((name, pool.generation))

    def phase(self, template: str = "shop") -> Condition:
        phase: Condition = self.fleet.pools[template].phase
        return phase

    async def edit(self, text: str) -> None:
        """Write a file, which the watcher sees."""
        self.builder.text = text
        await self.templates.look({"shop", "upper"})

    async def is_current(self) -> bool:
        """Say whether what is granted of both templates is what the files say."""
        recipe = self.templates.sources.recipe("shop")
        inputs = await self.builder.inputs(recipe)
        return self.phase() is self.phase("upper") is Condition.READY and (
            self.fleet.pools["shop"].generation == inputs.short
            and self.generations["upper"].inputs["extends"]["shop"] == inputs.short
        )

    async def settles(self) -> None:
        while not await self.is_current():
            await anyio.sleep(0.01)

    def granted_of(self, template: str = "shop") -> list[str]:
        return list(dict.fromkeys(short for name, short in self.granted if name == template))


@asynccontextmanager
async def working() -> AsyncIterator[Room]:
    room = Room()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(room.templates.run)
            yield room
            tasks.cancel_scope.cancel()


async def test_an_edit_after_the_last_look_of_a_build_is_not_forgotten_by_its_being_ready() -> None:
    async with working() as room:
        await room.settles()
        first = room.granted_of()
        room.builder.after_last_look["shop"] = lambda: room.edit("3")
        await room.edit("2")
        assert room.phase() is Condition.BUILDING
        await room.settles()
        assert room.builder.text == "3"
        assert room.granted_of() == [*first, room.generations["shop"].short]  # never of "2"


async def test_an_edit_during_the_first_build_of_all_is_not_forgotten_either() -> None:
    room = Room()
    room.builder.after_last_look["shop"] = lambda: room.edit("2")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(room.templates.run)
            await room.settles()
            tasks.cancel_scope.cancel()
    assert room.granted_of() == [room.generations["shop"].short]
    assert room.builder.text == "2"


async def test_an_edit_that_was_taken_back_builds_nothing_more() -> None:
    async with working() as room:
        await room.settles()

        async def there_and_back() -> None:
            await room.edit("3")
            await room.edit("2")

        room.builder.after_last_look["shop"] = there_and_back
        await room.edit("2")
        await room.settles()
        assert len(room.granted_of()) == 2


async def test_a_failure_is_not_reported_if_the_files_were_corrected_since() -> None:
    async with working() as room:
        await room.settles()
        phases: list[Condition] = []
        room.after_event = lambda: phases.append(room.phase())
        room.builder.after_last_look["shop"] = lambda: room.edit("2")
        await room.edit("nonsense")
        await room.settles()
        assert Condition.FAILED not in phases


async def test_what_extends_a_template_is_stale_from_the_moment_that_one_is() -> None:
    async with working() as room:
        await room.settles()
        await room.edit("2")
        assert room.phase("upper") is Condition.BUILDING
        await room.settles()


async def test_what_extends_a_template_that_fails_fails_with_it_and_comes_back_with_it() -> None:
    async with working() as room:
        await room.settles()
        await room.edit("nonsense")
        while room.phase("upper") is not Condition.FAILED:
            await anyio.sleep(0.01)
        assert "nonsense" in str(room.fleet.pools["upper"].failure)
        await room.edit("1")
        await room.settles()


async def test_what_waits_for_the_template_that_it_extends_is_not_looked_at_without_end() -> None:
    async with working() as room:
        await room.settles()
        began, go_on = anyio.Event(), anyio.Event()

        async def take_long() -> None:
            began.set()
            await go_on.wait()

        room.builder.after_last_look["shop"] = take_long
        await room.edit("2")
        await began.wait()
        looks = room.builder.looks
        for _ in range(300):  # turns of the loop, in each of which it could look again
            await anyio.lowlevel.checkpoint()
        assert room.builder.looks <= looks + 2
        go_on.set()
        await room.settles()


async def test_what_extends_a_template_that_was_never_built_is_not_built_without_it() -> None:
    room = Room()
    room.builder.text = "nonsense"
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(room.templates.run)
            while room.phase("upper") is not Condition.FAILED:
                await anyio.sleep(0.01)
            assert "upper" not in room.builder.built
            await room.edit("1")
            await room.settles()
            tasks.cancel_scope.cancel()


async def test_a_template_that_changes_all_the_time_lets_others_be_built() -> None:
    others = Config(templates={**CONFIG.templates, **OTHERS}, pool=PoolSection(ddl_concurrency=1))
    room = Room(others)
    numbers = iter(range(1000))

    async def change() -> None:
        room.builder.after_last_look["shop"] = change
        await room.edit(str(next(numbers)))

    room.builder.after_last_look["shop"] = change
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(room.templates.run)
            while not OTHERS.keys() <= room.generations.keys():
                await anyio.sleep(0.01)
            del room.builder.after_last_look["shop"]
            await room.settles()
            tasks.cancel_scope.cancel()


async def test_a_server_that_goes_away_after_the_build_is_waited_for() -> None:
    async with working() as room:
        await room.settles()
        inputs = room.builder.inputs

        async def away(recipe: Recipe) -> Inputs:  # noqa: ARG001 - as it stands there
            room.builder.inputs = inputs  # type: ignore[method-assign]
            raise ServerUnavailableError("away")

        async def edit() -> None:
            await room.edit("3")
            room.builder.inputs = away  # type: ignore[method-assign]

        room.builder.after_last_look["shop"] = edit
        await room.edit("2")
        await room.settles()
        assert room.builder.text == "3"


async def test_a_build_that_takes_long_keeps_no_other_template_waiting() -> None:
    room = Room(Config(templates={**CONFIG.templates, **OTHERS}))
    over = anyio.Event()
    room.builder.after_last_look["shop"] = over.wait
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(room.templates.run)
            while not OTHERS.keys() <= room.generations.keys():
                await anyio.sleep(0.01)
            assert "shop" not in room.generations
            assert "upper" not in room.builder.built, "it extends one that is not there"
            over.set()
            await room.settles()
            tasks.cancel_scope.cancel()


async def test_the_template_that_most_requests_wait_for_is_built_first() -> None:
    config = Config(templates=OTHERS, pool=PoolSection(ddl_concurrency=1))
    room = Room(config)
    for waiter, template in enumerate(("second", "third", "third")):
        room.fleet.acquire(template, request(waiter), 0.0)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(room.templates.run)
            while not OTHERS.keys() <= room.generations.keys():
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert room.builder.built == ["third", "second", "first"]
