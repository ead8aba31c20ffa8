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
    from support.servers import ServerTools

pytestmark = pytest.mark.anyio

SERVERS_OWN_PATIENCE_SECONDS = 5.0
"""How long CREATE DATABASE itself waits for sessions on its source before it fails."""


@pytest.fixture
async def generation(tools: ServerTools) -> AsyncIterator[Generation]:
    generation = await tools.build(BLOG)
    yield generation
    for database in (await databases.list_ours(tools.gateway, tools.namer))[0]:
        if database.identity.kind is Kind.CLONE:
            await databases.drop(tools.gateway, database.name)


def clone_name(tools: ServerTools, generation: Generation) -> str:
    serial = tools.serials.next()
    return tools.namer.name(Identity(Kind.CLONE, "blog", generation.short, serial))


async def make(
    tools: ServerTools,
    generation: Generation,
    name: str,
    *,
    seconds: float = 30.0,
    contents: Contents | None = None,
) -> None:
    await make_clone(
        tools.gateway,
        name,
        generation.database,
        contents or generation.contents,
        options="",
        facts={"kind": "clone"},
        seconds=seconds,
    )


async def exists(tools: ServerTools, name: str) -> bool:
    async with tools.gateway.control() as session:
        return bool(await session.rows("SELECT 1 FROM pg_database WHERE datname = $1", name))


async def test_several_clones_are_made_at_once(tools: ServerTools, generation: Generation) -> None:
    names = [clone_name(tools, generation) for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(make, tools, generation, name)
    found, _ = await databases.list_ours(tools.gateway, tools.namer)
    assert set(names) <= {database.name for database in found if database.valid}


async def test_a_clone_says_in_its_comment_what_it_is(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    await make(tools, generation, name)
    (found,) = (
        d for d in (await databases.list_ours(tools.gateway, tools.namer))[0] if d.name == name
    )
    assert found.comment == {"clonepool": 1, "kind": "clone"}


async def test_a_copy_that_does_not_hold_what_it_should_is_refused(
    tools: ServerTools, generation: Generation
) -> None:
    wrong = Contents(generation.contents.relations + 1, generation.contents.digest)
    with pytest.raises(IncompleteCloneError, match="holds"):
        await make(tools, generation, clone_name(tools, generation), contents=wrong)


async def test_a_clone_past_its_deadline_does_not_exist_then_or_later(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    with pytest.raises(ServerUnavailableError, match=r"took longer than 0\.001 s"):
        await make(tools, generation, name, seconds=0.001)
    await databases.drop(tools.gateway, name)
    assert not await exists(tools, name)


async def test_a_creation_that_is_cancelled_does_not_come_true_later(
    tools: ServerTools, generation: Generation
) -> None:
    for hurry in (0.0, 0.002, 0.005, 0.01):
        name = clone_name(tools, generation)
        with anyio.move_on_after(hurry):
            await make(tools, generation, name)
        await databases.drop(tools.gateway, name)
        async with tools.gateway.control() as session:
            busy = await session.rows(
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE $1 AND state = 'active'",
                f"CREATE DATABASE%{name}%",
            )
        assert not busy
        assert not await exists(tools, name)


async def test_a_source_in_use_is_tried_again_until_it_is_free(tools: ServerTools) -> None:
    await databases.create(tools.gateway, "busy_source", "template0", "", 30)
    guest = await tools.gateway.connect("busy_source")

    began = anyio.current_time()

    async def leave_later() -> None:
        await anyio.sleep(SERVERS_OWN_PATIENCE_SECONDS + 0.3)  # sleeps: longer than the server
        await guest.close()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_later)
            await databases.create(tools.gateway, "busy_copy", "busy_source", "", 30)
        assert anyio.current_time() - began > SERVERS_OWN_PATIENCE_SECONDS, "refused and retried"
        assert await exists(tools, "busy_copy")
    finally:
        await databases.drop(tools.gateway, "busy_copy")
        await databases.drop(tools.gateway, "busy_source")


async def test_a_source_that_stays_in_use_is_given_up_at_the_deadline(tools: ServerTools) -> None:
    await databases.create(tools.gateway, "busier_source", "template0", "", 30)
    async with tools.gateway.session("busier_source", OWN_NAMES):
        with pytest.raises(StatementError) as caught:
            await databases.create(tools.gateway, "busier_copy", "busier_source", "", 1.0)
    assert caught.value.sqlstate in ("55006", "57014")
    await databases.drop(tools.gateway, "busier_source")
    assert not await exists(tools, "busier_copy")


async def test_a_clone_in_use_is_dropped_all_the_same(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    await make(tools, generation, name)
    guest = await tools.gateway.connect(name)
    await databases.drop(tools.gateway, name)
    assert not await exists(tools, name)
    await guest.close()


async def test_dropping_what_is_gone_is_no_error(tools: ServerTools) -> None:
    await databases.drop(tools.gateway, "never_was")
    await databases.drop(tools.gateway, "never_was", sealed=True)
    assert not await exists(tools, "never_was")


async def test_an_invalid_database_is_recognised_and_dropped(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    await databases.create(tools.gateway, name, generation.database, "", 30)
    await tools.gateway.ddl(f"UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{name}'")
    (found,) = (
        d for d in (await databases.list_ours(tools.gateway, tools.namer))[0] if d.name == name
    )
    assert not found.valid
    await databases.drop(tools.gateway, name)
    assert not await exists(tools, name)


async def test_stray_sessions_are_named_and_then_ended(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    await make(tools, generation, name)
    guest = await tools.gateway.connect(name)
    await guest.value("SELECT 4711")
    (stray,) = await stray_sessions(tools.gateway, name)
    assert (stray["application_name"], stray["state"]) == ("clonepool test", "idle")
    assert "4711" in stray["query"]
    assert await databases.end_sessions(tools.gateway, name, clients_only=True)
    assert await databases.sessions(tools.gateway, name) == []
    await guest.close()


async def test_a_session_that_is_just_leaving_is_no_stray(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    await make(tools, generation, name)
    guest = await tools.gateway.connect(name)
    await guest.close()
    assert await stray_sessions(tools.gateway, name) == []


async def test_prepared_transactions_do_not_keep_a_clone(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    await make(tools, generation, name)
    async with tools.gateway.session(name, OWN_NAMES) as session:
        await session.execute(
            "BEGIN; DELETE FROM blog.tb_comment; PREPARE TRANSACTION 'it''s left'"
        )
    await databases.drop(tools.gateway, name)
    assert not await exists(tools, name)


async def test_a_clone_that_was_marked_as_a_template_is_dropped_all_the_same(
    tools: ServerTools, generation: Generation
) -> None:
    name = clone_name(tools, generation)
    await make(tools, generation, name)
    await tools.gateway.ddl(f"ALTER DATABASE {name} IS_TEMPLATE true")
    await databases.drop(tools.gateway, name)
    assert not await exists(tools, name)
