from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from clonepool.core.naming import Identity, Kind
from clonepool.errors import ServerUnavailableError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import Contents, IncompleteCloneError, make_clone
from clonepool.postgres.gateway import OWN_NAMES
from clonepool.postgres.rewind.stray_sessions import stray_sessions
from support.servers import BLOG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.templates.recipe import Generation
    from support.servers import Workshop

pytestmark = pytest.mark.anyio

SERVERS_OWN_PATIENCE_SECONDS = 5.0
"""How long CREATE DATABASE itself waits for sessions on its source before it fails."""


@pytest.fixture
async def generation(workshop: Workshop) -> AsyncIterator[Generation]:
    generation = await workshop.build(BLOG)
    yield generation
    for database in (await databases.list_ours(workshop.gateway, workshop.namer))[0]:
        if database.identity.kind is Kind.CLONE:
            await databases.drop(workshop.gateway, database.name)


def clone_name(shop: Workshop, generation: Generation) -> str:
    serial = shop.serials.next()
    return shop.namer.name(Identity(Kind.CLONE, "blog", generation.short, serial))


async def make(
    shop: Workshop,
    generation: Generation,
    name: str,
    *,
    seconds: float = 30.0,
    contents: Contents | None = None,
) -> None:
    await make_clone(
        shop.gateway,
        name,
        generation.database,
        contents or generation.contents,
        options="",
        facts={"kind": "clone"},
        seconds=seconds,
    )


async def exists(shop: Workshop, name: str) -> bool:
    async with shop.gateway.control() as session:
        return bool(await session.rows("SELECT 1 FROM pg_database WHERE datname = $1", name))


async def test_several_clones_are_made_at_once(workshop: Workshop, generation: Generation) -> None:
    names = [clone_name(workshop, generation) for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(make, workshop, generation, name)
    found, _ = await databases.list_ours(workshop.gateway, workshop.namer)
    assert set(names) <= {database.name for database in found if database.valid}


async def test_a_clone_says_in_its_comment_what_it_is(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    await make(workshop, generation, name)
    (found,) = (
        d
        for d in (await databases.list_ours(workshop.gateway, workshop.namer))[0]
        if d.name == name
    )
    assert found.comment == {"clonepool": 1, "kind": "clone"}


async def test_a_copy_that_does_not_hold_what_it_should_is_refused(
    workshop: Workshop, generation: Generation
) -> None:
    wrong = Contents(generation.contents.relations + 1, generation.contents.digest)
    with pytest.raises(IncompleteCloneError, match="holds"):
        await make(workshop, generation, clone_name(workshop, generation), contents=wrong)


async def test_a_clone_past_its_deadline_does_not_exist_then_or_later(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    with pytest.raises(ServerUnavailableError, match=r"took longer than 0\.001 s"):
        await make(workshop, generation, name, seconds=0.001)
    await databases.drop(workshop.gateway, name)
    assert not await exists(workshop, name)


async def test_a_creation_that_is_cancelled_does_not_come_true_later(
    workshop: Workshop, generation: Generation
) -> None:
    for hurry in (0.0, 0.002, 0.005, 0.01):
        name = clone_name(workshop, generation)
        with anyio.move_on_after(hurry):
            await make(workshop, generation, name)
        await databases.drop(workshop.gateway, name)
        async with workshop.gateway.control() as session:
            busy = await session.rows(
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE $1 AND state = 'active'",
                f"CREATE DATABASE%{name}%",
            )
        assert not busy
        assert not await exists(workshop, name)


async def test_a_source_in_use_is_tried_again_until_it_is_free(workshop: Workshop) -> None:
    await databases.create(workshop.gateway, "busy_source", "template0", "", 30)
    guest = await workshop.gateway.connect("busy_source")

    began = anyio.current_time()

    async def leave_later() -> None:
        await anyio.sleep(SERVERS_OWN_PATIENCE_SECONDS + 0.3)  # sleeps: longer than the server
        await guest.close()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_later)
            await databases.create(workshop.gateway, "busy_copy", "busy_source", "", 30)
        assert anyio.current_time() - began > SERVERS_OWN_PATIENCE_SECONDS, "refused and retried"
        assert await exists(workshop, "busy_copy")
    finally:
        await databases.drop(workshop.gateway, "busy_copy")
        await databases.drop(workshop.gateway, "busy_source")


async def test_a_source_that_stays_in_use_is_given_up_at_the_deadline(workshop: Workshop) -> None:
    await databases.create(workshop.gateway, "busier_source", "template0", "", 30)
    async with workshop.gateway.session("busier_source", OWN_NAMES):
        with pytest.raises(StatementError) as caught:
            await databases.create(workshop.gateway, "busier_copy", "busier_source", "", 1.0)
    assert caught.value.sqlstate in ("55006", "57014")
    await databases.drop(workshop.gateway, "busier_source")
    assert not await exists(workshop, "busier_copy")


async def test_a_clone_in_use_is_dropped_all_the_same(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    await make(workshop, generation, name)
    guest = await workshop.gateway.connect(name)
    await databases.drop(workshop.gateway, name)
    assert not await exists(workshop, name)
    await guest.close()


async def test_dropping_what_is_gone_is_no_error(workshop: Workshop) -> None:
    await databases.drop(workshop.gateway, "never_was")
    await databases.drop(workshop.gateway, "never_was", sealed=True)
    assert not await exists(workshop, "never_was")


async def test_an_invalid_database_is_recognised_and_dropped(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    await databases.create(workshop.gateway, name, generation.database, "", 30)
    await workshop.gateway.ddl(f"UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{name}'")
    (found,) = (
        d
        for d in (await databases.list_ours(workshop.gateway, workshop.namer))[0]
        if d.name == name
    )
    assert not found.valid
    await databases.drop(workshop.gateway, name)
    assert not await exists(workshop, name)


async def test_stray_sessions_are_named_and_then_ended(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    await make(workshop, generation, name)
    guest = await workshop.gateway.connect(name)
    await guest.value("SELECT 4711")
    (stray,) = await stray_sessions(workshop.gateway, name)
    assert (stray["application_name"], stray["state"]) == ("clonepool test", "idle")
    assert "4711" in stray["query"]
    assert await databases.end_sessions(workshop.gateway, name, clients_only=True)
    assert await databases.sessions(workshop.gateway, name) == []
    await guest.close()


async def test_a_session_that_is_just_leaving_is_no_stray(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    await make(workshop, generation, name)
    guest = await workshop.gateway.connect(name)
    await guest.close()
    assert await stray_sessions(workshop.gateway, name) == []


async def test_prepared_transactions_do_not_keep_a_clone(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    await make(workshop, generation, name)
    async with workshop.gateway.session(name, OWN_NAMES) as session:
        await session.execute(
            "BEGIN; DELETE FROM blog.tb_comment; PREPARE TRANSACTION 'it''s left'"
        )
    await databases.drop(workshop.gateway, name)
    assert not await exists(workshop, name)


async def test_a_clone_that_was_marked_as_a_template_is_dropped_all_the_same(
    workshop: Workshop, generation: Generation
) -> None:
    name = clone_name(workshop, generation)
    await make(workshop, generation, name)
    await workshop.gateway.ddl(f"ALTER DATABASE {name} IS_TEMPLATE true")
    await databases.drop(workshop.gateway, name)
    assert not await exists(workshop, name)
