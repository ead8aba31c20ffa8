"""The main scenario of the project, on every installed version of PostgreSQL."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from clonepool.core.naming import Identity, Kind
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.gateway import OWN_NAMES
from support.servers import BLOG

if TYPE_CHECKING:
    from support.servers import ServerTools

pytestmark = pytest.mark.anyio

COUNT = "SELECT count(*) FROM blog.tb_user"
INSERT = (
    "INSERT INTO blog.tb_user (username, email, password_hash)"
    " VALUES ('newcomer', 'newcomer@example.org', 'x')"
)


async def test_a_clone_of_the_blog_is_made_quickly_and_changes_alone(
    any_tools: ServerTools,
) -> None:
    tools = any_tools
    generation = await tools.build(BLOG, template="blog_template")
    names = [
        tools.namer.name(Identity(Kind.CLONE, "blog_template", generation.short, serial))
        for serial in (1, 2)
    ]
    began = time.perf_counter()
    for name in names:
        await make_clone(
            tools.gateway,
            name,
            generation.database,
            generation.contents,
            options="",
            facts={},
            seconds=30,
        )
    took = (time.perf_counter() - began) / len(names)
    try:
        counts = []
        for name in names:
            async with tools.gateway.session(name, OWN_NAMES) as session:
                counts.append(await session.value(COUNT))
        assert counts == [40, 40]
        async with tools.gateway.session(names[0], OWN_NAMES) as session:
            await session.execute(INSERT)
            assert await session.value(COUNT) == 41
        async with tools.gateway.session(names[1], OWN_NAMES) as session:
            assert await session.value(COUNT) == 40
        # The template itself is sealed; what it holds now is what a new clone holds.
        third = tools.namer.name(Identity(Kind.CLONE, "blog_template", generation.short, 3))
        names.append(third)
        await databases.create(tools.gateway, third, generation.database, "", 30)
        async with tools.gateway.session(third, OWN_NAMES) as session:
            assert await session.value(COUNT) == 40
    finally:
        for name in names:
            await databases.drop(tools.gateway, name)
    assert took < 0.5, f"a clone took {took:.3f} s"
