"""Leftovers of a lease do not keep its clone from being dropped; parked clones stay closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest

from clonepool.config import EmbeddedSection, TemplateSection
from clonepool.core.naming import Identity, Kind
from clonepool.errors import TemplateFailedError
from clonepool.postgres import databases, leftovers
from clonepool.postgres.clones.lifecycle import (
    IncompleteCloneError,
    adopt,
    make_clone,
    park,
)
from clonepool.postgres.embedded.server import EmbeddedServer, discard
from clonepool.postgres.gateway import OWN_NAMES, Gateway
from clonepool.postgres.roles import OURS, Ownership, Rights, Roles
from clonepool.postgres.templates.client_generation import ClientGenerations
from clonepool.postgres.templates.recipe import Recipe
from support import binaries
from support.servers import BLOG, ServerTools, open_directory, role_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

pytestmark = pytest.mark.anyio

NEVER = "host=/nowhere dbname=nothing"


@pytest.fixture(scope="module")
def logical_server() -> Iterator[EmbeddedServer]:
    """Return a server that replicates."""
    with open_directory() as state:
        newest = next(iter(binaries.available().values()))
        settings = {
            "wal_level": "logical", "max_wal_senders": "4", "max_replication_slots": "4",
            "max_prepared_transactions": "4", "max_logical_replication_workers": "0",
        }  # fmt: skip
        server = EmbeddedServer(EmbeddedSection(binaries=str(newest), settings=settings), state, 16)
        try:
            anyio.run(server.start)
            yield server
            anyio.run(server.stop)
        finally:
            anyio.run(discard, state)


@pytest.fixture
async def logical(logical_server: EmbeddedServer) -> AsyncIterator[ServerTools]:
    tools = await ServerTools.open(logical_server.endpoint, logical_server.psql, "logical")
    yield tools
    await tools.gateway.close()


async def make(tools: ServerTools, serial: int) -> str:
    generation = await tools.build(BLOG)
    name = tools.namer.name(Identity(Kind.CLONE, "blog", generation.short, serial))
    await make_clone(
        tools.gateway, name, generation.database, generation.contents,
        options="", facts={}, seconds=30,
    )  # fmt: skip
    return name


async def leave_all_behind(gateway: Gateway, name: str) -> None:
    async with gateway.session(name, OWN_NAMES) as session:
        # The slot first: to make one waits for transactions to end, prepared ones too.
        await session.rows("SELECT pg_create_logical_replication_slot('slot_1', 'pgoutput')")
        await session.execute(
            f"BEGIN; DELETE FROM blog.tb_comment; PREPARE TRANSACTION 'prepared {name}'"
        )
        await session.execute(
            f"CREATE SUBSCRIPTION sub CONNECTION '{NEVER}' PUBLICATION p WITH (connect = false)"
        )


async def test_all_that_holds_on_to_a_database_is_found_and_cleared(logical: ServerTools) -> None:
    name = await make(logical, 1)
    await leave_all_behind(logical.gateway, name)
    found = await leftovers.clear(logical.gateway, name)
    assert found == [
        "replication slot slot_1", f"prepared transaction prepared {name}", "subscription sub",
    ]  # fmt: skip
    assert await leftovers.clear(logical.gateway, name) == []
    await databases.drop(logical.gateway, name)


async def test_a_drop_clears_it_too(logical: ServerTools) -> None:
    name = await make(logical, 2)
    await leave_all_behind(logical.gateway, name)
    await databases.drop(logical.gateway, name)
    ours, _ = await databases.list_ours(logical.gateway, logical.namer)
    assert name not in {database.name for database in ours}
    async with logical.gateway.control() as session:
        assert await session.value("SELECT count(*) FROM pg_replication_slots") == 0
        assert await session.value("SELECT count(*) FROM pg_prepared_xacts") == 0


async def test_a_drop_that_was_cut_short_is_finished_by_the_next(any_tools: ServerTools) -> None:
    generation = await any_tools.build(BLOG)
    name = generation.database
    async with any_tools.gateway.control() as session:
        await session.execute(
            f"ALTER DATABASE {name} WITH IS_TEMPLATE false;"
            f" UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{name}'"  # as a DROP does
        )
    await databases.drop(any_tools.gateway, name, sealed=True)
    async with any_tools.gateway.control() as session:
        assert not await session.rows("SELECT FROM pg_database WHERE datname = $1", name)


async def test_of_a_sealed_database_too(logical: ServerTools) -> None:
    """As it is left by a daemon that was killed, or an earlier one; the next sweeps it."""
    name = logical.namer.name(Identity(Kind.BUILD, "blog", "abcdefgh", 3))
    await databases.create(logical.gateway, name, (await logical.build(BLOG)).database, "", 30)
    await databases.unseal(logical.gateway, name)
    await leave_all_behind(logical.gateway, name)
    await databases.seal(logical.gateway, name)
    await databases.drop(logical.gateway, name, sealed=True)
    assert name not in await names(logical)
    assert await prepared(logical) == 0


async def names(tools: ServerTools) -> set[str]:
    ours, _ = await databases.list_ours(tools.gateway, tools.namer)
    return {database.name for database in ours}


async def prepared(tools: ServerTools) -> int:
    async with tools.gateway.control() as session:
        found: int = await session.value("SELECT count(*) FROM pg_prepared_xacts")
    return found


LEAVE = "CREATE TABLE kept (); BEGIN; CREATE TABLE lost (); LOCK kept; PREPARE TRANSACTION 'left';"
OWNED = Ownership("left_app", Rights.OWNER)


@pytest.mark.parametrize("ownership", [OURS, OWNED], ids=["as the daemon", "with a login"])
async def test_a_build_that_leaves_a_prepared_transaction_fails_and_leaves_nothing(
    any_tools: ServerTools, place: Path, ownership: Ownership
) -> None:
    tools, before = any_tools, await names(any_tools)
    (place / "a.sql").write_text(LEAVE)
    with pytest.raises(TemplateFailedError, match="prepared transaction 'left'") as caught:
        await tools.build(["a.sql"], place, "left", ownership)
    assert "COMMIT PREPARED" in caught.value.remedy
    assert await names(tools) == before
    assert await prepared(tools) == 0
    (place / "a.sql").write_text(f"{LEAVE} COMMIT PREPARED 'left';")
    made = await tools.build(["a.sql"], place, "left", ownership)
    await databases.drop(tools.gateway, made.database, sealed=True)


async def test_so_does_what_a_client_fills(any_tools: ServerTools, place: Path) -> None:
    tools, before = any_tools, await names(any_tools)
    handmade = ClientGenerations(
        tools.gateway, tools.capabilities, tools.builder.generations, tools.builder.steps,
        tools.serials.next,
    )  # fmt: skip
    await tools.roles.ensure_owner(OWNED)
    recipe = Recipe("filled", TemplateSection(), place, ownership=OWNED)
    inputs = await handmade.identify(recipe, "all of it")
    database = await handmade.empty(recipe, "abcdefgh")
    async with Gateway(database.login, "a filler").session(database.name, OWN_NAMES) as session:
        for statement in LEAVE.split("; "):
            await session.execute(statement)
    with pytest.raises(TemplateFailedError, match="prepared transaction 'left'"):
        await handmade.finish(database.name, recipe, "abcdefgh", inputs, {}, filled=True)
    assert await names(tools) == before
    assert await prepared(tools) == 0


async def test_a_parked_clone_refuses_connections_and_is_opened_again(
    any_tools: ServerTools,
) -> None:
    tools = any_tools
    name = await make(tools, 77)
    generation = await tools.build(BLOG)
    await park(tools.gateway, name, {"state": "parked"})
    with pytest.raises(Exception, match="not currently accepting connections"):
        await tools.gateway.connect(name)
    ours, _ = await databases.list_ours(tools.gateway, tools.namer)
    (found,) = (database for database in ours if database.name == name)
    assert (found.open, found.comment["state"]) == (False, "parked")
    await adopt(tools.gateway, name, generation.contents, {"state": "plain"}, 30)
    async with tools.gateway.session(name, OWN_NAMES) as session:
        assert await session.value("SELECT count(*) FROM blog.tb_user") == 40
        await session.execute("CREATE TABLE more ()")
    with pytest.raises(IncompleteCloneError):
        await adopt(tools.gateway, name, generation.contents, {}, 30)
    await databases.drop(tools.gateway, name)


async def test_an_ordinary_role_makes_roles_for_its_clones(any_server: EmbeddedServer) -> None:
    """CREATEDB and CREATEROLE are enough, on every version."""
    owner = Gateway(any_server.endpoint, "clonepool test")
    await owner.ddl("CREATE ROLE maker LOGIN CREATEDB CREATEROLE PASSWORD 'plain'")
    endpoint = role_of(any_server.endpoint, "maker")
    tools = await ServerTools.open(endpoint, any_server.psql, "made", embedded=False)
    roles = Roles(tools.gateway, tools.capabilities, embedded=False)
    try:
        ownership = Ownership("made_app", Rights.OWNER)
        generation = await tools.build(BLOG, ownership=ownership)
        name = tools.namer.name(Identity(Kind.CLONE, "blog", generation.short, 5))
        await make_clone(
            tools.gateway, name, generation.database, generation.contents,
            options="", facts={}, seconds=30, owner="made_app",
        )  # fmt: skip
        await roles.create_login(name, ownership, "pw-1")
        await visits(endpoint, name)
        await roles.renew(name, ownership, "pw-2")
        with pytest.raises(Exception, match="password authentication failed"):
            await visits(endpoint, name)
        await databases.drop(tools.gateway, name)
        assert await roles.sweep(tools.namer) == [name]
    finally:
        await tools.gateway.close()
        ours, _ = await databases.list_ours(owner, tools.namer)
        for database in ours:
            await databases.drop(owner, database.name, sealed=True)
            await owner.ddl(f'DROP ROLE IF EXISTS "{database.name}"')
        await owner.ddl("DROP ROLE made_app")
        await owner.ddl("DROP ROLE maker")
        await owner.close()


async def visits(server: Endpoint, name: str) -> None:
    """See that the clone's role, and only that, may work in the clone."""
    login = msgspec.structs.replace(server, user=name, password="pw-1")
    async with Gateway(login, "clonepool test").session(name) as session:
        assert await session.value("SELECT count(*) FROM blog.tb_user") == 40
        await session.execute("CREATE TABLE public.mine (); DROP VIEW blog.front_page")
