"""A server by URL: an ordinary role with CREATEDB is enough, and missing features are reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread
import msgspec
import pytest

from clonepool.core.naming import Identity, Kind
from clonepool.errors import (
    AlreadyRunningError,
    CapabilityError,
    ServerUnavailableError,
)
from clonepool.postgres import databases
from clonepool.postgres.capabilities import inspect, missing_requirement
from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.endpoint import Endpoint, from_url
from clonepool.postgres.gateway import OWN_NAMES, Gateway
from clonepool.postgres.instance_lock import InstanceLock
from support.daemons import running_daemon
from support.servers import BLOG, ROOT, ServerTools, role_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.embedded.server import EmbeddedServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def ordinary(any_server: EmbeddedServer) -> AsyncIterator[Endpoint]:
    """Return a login of a role that may create databases and nothing else."""
    gateway = Gateway(any_server.endpoint, "clonepool test")
    await gateway.ddl("DROP ROLE IF EXISTS ordinary")
    await gateway.ddl("CREATE ROLE ordinary LOGIN CREATEDB PASSWORD 'plain'")
    yield role_of(any_server.endpoint, "ordinary")
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT datname, datistemplate FROM pg_database d JOIN pg_roles r ON r.oid = datdba"
            " WHERE rolname = 'ordinary'"
        )
    for row in rows:
        await databases.drop(gateway, row["datname"], sealed=row["datistemplate"])
    await gateway.ddl("DROP ROLE ordinary")
    await gateway.close()


async def test_an_ordinary_role_builds_clones_and_drops(
    any_server: EmbeddedServer, ordinary: Endpoint
) -> None:
    tools = await ServerTools.open(from_url(ordinary.url("postgres")), any_server.psql, "plain")
    assert not tools.capabilities.superuser
    generation = await tools.build(BLOG)
    name = tools.namer.name(Identity(Kind.CLONE, "blog", generation.short, 1))
    await make_clone(
        tools.gateway,
        name,
        generation.database,
        generation.contents,
        options="",
        facts={},
        seconds=30,
    )
    async with tools.gateway.session(name, OWN_NAMES) as session:
        assert await session.value("SELECT count(*) FROM blog.tb_user") == 40
        await session.execute("DELETE FROM blog.tb_comment")
    await databases.drop(tools.gateway, name)
    await databases.drop(tools.gateway, generation.database, sealed=True)
    await tools.gateway.close()


async def test_a_role_without_createdb_is_told_what_to_do(
    any_server: EmbeddedServer, ordinary: Endpoint
) -> None:
    owner = Gateway(any_server.endpoint, "clonepool test")
    await owner.ddl("ALTER ROLE ordinary NOCREATEDB")
    gateway = Gateway(ordinary, "clonepool test")
    with pytest.raises(CapabilityError, match="role ordinary lacks CREATEDB") as caught:
        await inspect(gateway)
    assert caught.value.remedy == "as a superuser: ALTER ROLE ordinary CREATEDB"
    await gateway.close()
    await owner.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "wrong"}, "password"),
        ({"maintenance": "nowhere"}, "name an existing database in the URL"),
    ],
)
async def test_a_login_that_fails_says_what_to_check(
    server: EmbeddedServer, change: dict[str, str], message: str
) -> None:
    gateway = Gateway(server.endpoint, "clonepool test")
    await gateway.ddl("DROP ROLE IF EXISTS known")
    await gateway.ddl("CREATE ROLE known LOGIN CREATEDB PASSWORD 'plain'")
    await gateway.close()
    endpoint = msgspec.structs.replace(role_of(server.endpoint, "known"), **change)
    with pytest.raises(CapabilityError) as caught:
        await inspect(Gateway(endpoint, "clonepool test"))
    assert message in caught.value.sentence()


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    gateway = Gateway(Endpoint("127.0.0.1", 1, "me", ""), "clonepool test")
    with pytest.raises(ServerUnavailableError):
        await inspect(gateway)


@pytest.mark.parametrize(("version", "fits"), [(120_022, False), (130_000, True), (190_000, False)])
def test_versions_from_13_to_18_are_served(version: int, fits: bool) -> None:
    row: dict[str, object] = {
        "version": version,
        "version_text": "x",
        "role": "me",
        "superuser": False,
        "createdb": True,
        "standby": False,
    }
    assert (missing_requirement(row) is None) is fits


async def test_a_second_daemon_of_the_instance_is_told_who_holds_the_lock(
    server: EmbeddedServer,
) -> None:
    first, second = (Gateway(server.endpoint, f"clonepool {n}") for n in ("one", "two"))
    held, wanted = InstanceLock(first, "main"), InstanceLock(second, "main")
    await held.take(lambda: None)
    with pytest.raises(
        AlreadyRunningError, match=r"another daemon of instance main.*clonepool one"
    ):
        await wanted.take(lambda: None)
    other = InstanceLock(second, "other")
    await other.take(lambda: None)
    await other.close()
    await held.close()
    await wanted.take(lambda: None)
    await wanted.close()


async def test_a_daemon_leases_clones_of_a_server_by_url(ordinary: Endpoint) -> None:
    config = f"""
server = "{ordinary.url("postgres")}"
instance = "byurl"
[http]
listen = ""
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 2
max_clones = 4
"""
    await anyio.to_thread.run_sync(_lease_once, config)


def _lease_once(config: str) -> None:
    with running_daemon(config) as daemon, daemon.client() as client:
        lease = client.lease("blog", timeout=30)
        assert lease.user == "ordinary"
        assert lease.database.startswith("cp_byurl_blog_")
        assert lease.release(report=True) == []
