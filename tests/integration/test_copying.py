"""Every copy strategy makes the same clone; if a server refuses one, another is used."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from clonepool.core.copy_choice import SAMPLES, WARM_UP, CopyChooser, Strategy
from clonepool.core.naming import Identity, Kind
from clonepool.errors import CapabilityError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.clones.copier import MEASURING, CloneSpec, Copier, Copiers
from clonepool.postgres.clones.copy_strategy import candidates
from clonepool.postgres.clones.lifecycle import TooSlowError
from clonepool.postgres.gateway import OWN_NAMES
from support.servers import BLOG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.postgres.templates.recipe import Generation
    from support.servers import ServerTools

pytestmark = pytest.mark.anyio

DIGEST = """\
SELECT md5(string_agg(row, '|' ORDER BY row)) AS digest FROM (
    SELECT 'user' || u::text FROM blog.tb_user u
    UNION ALL SELECT 'post' || p::text FROM blog.tb_post p
    UNION ALL SELECT 'comment' || c::text FROM blog.tb_comment c) AS every (row)
"""


class Desk:
    """A template of which clones are ordered."""

    def __init__(self, tools: ServerTools, generation: Generation) -> None:
        self.tools = tools
        self.generation = generation

    def spec(self, *, seconds: float = 30.0) -> CloneSpec:
        """Return an order for one more clone."""
        serial = self.tools.serials.next()
        name = self.tools.namer.name(Identity(Kind.CLONE, "blog", self.generation.short, serial))
        contents = self.generation.contents
        return CloneSpec(name, self.generation.database, contents, {"kind": "clone"}, seconds)

    def copier(self, *able: Strategy) -> Copier:
        """Return a copier that has these strategies to choose from."""
        chooser = CopyChooser(able, set())
        return Copier(self.tools.gateway, self.tools.capabilities, "blog", chooser, time.monotonic)

    @property
    def able(self) -> tuple[Strategy, ...]:
        """What the server can do."""
        return candidates("auto", self.tools.capabilities, throwaway=True)

    async def digest(self, database: str) -> str:
        """Return a digest of its rows."""
        async with self.tools.gateway.session(database, OWN_NAMES) as session:
            return str(await session.value(DIGEST))

    async def names(self) -> set[str]:
        """Return which databases of ours there are."""
        ours, _ = await databases.list_ours(self.tools.gateway, self.tools.namer)
        return {database.name for database in ours if database.identity.kind is Kind.CLONE}


@pytest.fixture
async def desk(any_tools: ServerTools) -> AsyncIterator[Desk]:
    made = Desk(any_tools, await any_tools.build(BLOG))
    yield made
    for name in await made.names():
        await databases.drop(any_tools.gateway, name)


async def test_every_strategy_makes_the_same_clone(desk: Desk) -> None:
    digests = []
    for strategy in desk.able:
        spec = desk.spec()
        await desk.copier(strategy).make(spec)
        digests.append(await desk.digest(spec.name))
    assert len(digests) >= 2
    assert len(set(digests)) == 1


async def test_a_choice_is_made_after_so_many_clones_and_told_once(desk: Desk) -> None:
    capabilities = desk.tools.capabilities
    copiers = Copiers(
        desk.tools.gateway, capabilities, {"blog": "auto"}, time.monotonic, throwaway=True
    )
    assert copiers.shown("blog") == MEASURING
    assert not any(chosen for _, _, chosen in copiers.strategies())
    with capture_logs() as logs:
        for _ in range(len(desk.able) * (WARM_UP + SAMPLES) + 2):
            spec = desk.spec()
            await copiers.of("blog").make(spec)
            await databases.drop(desk.tools.gateway, spec.name)
    (told,) = (entry for entry in logs if entry["event"] == "copy.strategy_chosen")
    assert copiers.shown("blog") == told["strategy"]
    assert set(told["seconds"]) == set(desk.able)
    assert [strategy for _, strategy, chosen in copiers.strategies() if chosen] == [
        told["strategy"]
    ]
    copiers.server_changed()
    assert copiers.shown("blog") == MEASURING


async def test_another_generation_is_measured_anew(desk: Desk) -> None:
    copier = desk.copier(*desk.able)
    for strategy in desk.able[:-1]:
        copier.chooser.refuse(strategy)
    await copier.make(desk.spec())
    assert copier.chooser.chosen is desk.able[-1]
    other = await desk.tools.build(["examples/blog/1_schema.sql"], template="schema")
    spec = desk.spec()
    name = desk.tools.namer.name(Identity(Kind.CLONE, "schema", other.short, 1))
    await copier.make(CloneSpec(name, other.database, other.contents, spec.facts, spec.seconds))
    assert copier.chooser.chosen is None


async def test_sessions_that_were_kept_copy_as_they_are_told(desk: Desk) -> None:
    """The method is a setting of the session, and sessions are kept for the next copy."""
    if Strategy.CLONE not in desk.able:
        pytest.skip("before PostgreSQL 18 there is no such setting")
    for strategy in (Strategy.CLONE, Strategy.FILE_COPY, Strategy.CLONE):
        await desk.copier(strategy).make(desk.spec())
        async with desk.tools.gateway.control() as session:
            method = await session.value("SHOW file_copy_method")
        assert method == {"clone": "clone", "file_copy": "copy"}[strategy]


async def test_a_strategy_that_the_server_refuses_costs_no_clone(desk: Desk) -> None:
    if Strategy.CLONE in desk.able:
        pytest.skip("PostgreSQL 18 refuses none")
    newer = msgspec.structs.replace(desk.tools.capabilities, file_copy_methods=("copy", "clone"))
    chooser = CopyChooser((Strategy.CLONE, Strategy.WAL_LOG), set())
    copier = Copier(desk.tools.gateway, newer, "blog", chooser, time.monotonic)
    spec = desk.spec()
    with capture_logs() as logs:
        await copier.make(spec)
        await copier.make(desk.spec())
    assert spec.name in await desk.names()
    assert [entry["strategy"] for entry in logs if entry["log_level"] == "warning"] == ["clone"]
    assert chooser.chosen is Strategy.WAL_LOG


async def test_what_fails_whatever_the_strategy_strikes_none_off(desk: Desk) -> None:
    copier = desk.copier(*desk.able)
    spec = desk.spec()
    await copier.make(spec)
    with pytest.raises(StatementError, match="already exists"):
        await copier.make(spec)
    assert copier.chooser.has_other(desk.able[:-1])
    assert copier.chooser.has_other(desk.able[1:])


async def test_a_trial_that_takes_too_long_is_made_good_in_the_same_try(desk: Desk) -> None:
    copier, late = desk.copier(*desk.able), desk.able[1]
    await copier.make(desk.spec())
    begin = copier.chooser.begin

    def begin_in_a_hurry(**how: object) -> object:
        turn = begin(**how)  # type: ignore[arg-type]
        turn.limit = 0.001 if turn.strategy is late else None
        return turn

    copier.chooser.begin = begin_in_a_hurry  # type: ignore[method-assign, assignment]
    spec = desk.spec()
    await copier.make(spec)
    assert spec.name in await desk.names()
    assert await desk.digest(spec.name)


async def test_a_clone_that_takes_too_long_by_any_strategy_is_an_error(desk: Desk) -> None:
    spec = desk.spec(seconds=0.001)
    with pytest.raises(TooSlowError):
        await desk.copier(*desk.able).make(spec)
    await databases.drop(desk.tools.gateway, spec.name)


async def test_a_copy_that_is_cancelled_is_company_to_none(desk: Desk) -> None:
    copier = desk.copier(*desk.able)
    with anyio.move_on_after(0.001):
        await copier.make(spec := desk.spec())
    await databases.drop(desk.tools.gateway, spec.name)
    assert copier.chooser.begin().alone


async def test_a_strategy_that_the_server_cannot_do_is_named_with_its_key(desk: Desk) -> None:
    if Strategy.CLONE in desk.able:
        pytest.skip("PostgreSQL 18 can do all")
    with pytest.raises(CapabilityError, match=r'^templates\.blog\.copy = "clone": PostgreSQL'):
        Copiers(
            desk.tools.gateway, desk.tools.capabilities, {"blog": "clone"}, time.monotonic,
            throwaway=True,
        )  # fmt: skip
