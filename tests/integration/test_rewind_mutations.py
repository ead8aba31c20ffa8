"""The rewind is broken on purpose: its own proof and the oracle catch every way of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from clonepool.postgres.rewind import rewinder, undo
from clonepool.postgres.rewind.proof import ProofError
from clonepool.postgres.rewind.survey import take_survey
from support.museum import NOT_REWINDABLE, REWINDABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.rewind.survey import Relation, Survey
    from clonepool.postgres.rewind.undo import Changes
    from support.rewinding import Bench

pytestmark = pytest.mark.anyio
Patch = pytest.MonkeyPatch


def of_changes(change: Callable[[Changes], Changes]) -> Callable[[Patch], None]:
    """Return a mutation of what is found to have changed."""
    real = undo.find_changes

    async def find(*arguments: Any) -> Changes:
        return change(await real(*arguments))

    return lambda patch: patch.setattr(rewinder, "find_changes", find)


def of_surveys(blind: Callable[[Survey], Survey]) -> Callable[[Patch], None]:
    """Return a mutation of what is seen of a clone."""
    real = take_survey

    async def take(*arguments: Any) -> Survey:
        return blind(await real(*arguments))

    return lambda patch: patch.setattr(rewinder, "take_survey", take)


def without_fields(*numbers: int) -> Callable[[Survey], Survey]:
    """Be blind to some of the numbers that tell a relation's state."""

    def relation(found: Relation) -> Relation:
        parts = found.state.split(",")
        kept = [part for number, part in enumerate(parts) if number not in numbers]
        return msgspec.structs.replace(found, state=",".join(kept))

    def blind(survey: Survey) -> Survey:
        seen = {oid: relation(found) for oid, found in survey.relations.items()}
        return msgspec.structs.replace(survey, relations=seen)

    return blind


def trusting_catalogs(patch: Patch) -> None:
    async def check(*_: object) -> None:
        """See nothing."""

    patch.setattr(undo, "_check_catalogs", check)


def trusting_the_database(patch: Patch) -> None:
    patch.setattr(undo, "_check_database", lambda *_: None)


def forgetting_rows(patch: Patch) -> None:
    real = undo._put_back

    async def put_back(session: Any, tables: list[Any]) -> None:
        await real(session, [msgspec.structs.replace(t, count=0) for t in tables])

    patch.setattr(undo, "_put_back", put_back)


def putting_back_the_wrong_rows(patch: Patch) -> None:
    real = undo._put_back

    async def put_back(session: Any, tables: list[Any]) -> None:
        await real(session, tables)
        await session.execute(f"UPDATE {tables[0].name} SET v = v || '' || 'x' WHERE id = 1")

    patch.setattr(undo, "_put_back", put_back)


def with_triggers(patch: Patch) -> None:
    real = undo._put_back

    async def put_back(session: Any, tables: list[Any]) -> None:
        await real(session, tables)
        await session.execute("UPDATE m.watched SET id = id")

    patch.setattr(undo, "_put_back", put_back)


def blind_to_sequences(survey: Survey) -> Survey:
    return msgspec.structs.replace(survey, sequences={})


class Mutation(NamedTuple):
    """A way to break the rewind, and what a lease has to do for it to matter."""

    apply: Callable[[Patch], None]
    script: str


COUNTERS, MAP, AGES, FILE, SIZE = (3, 4, 5), (7, 8), (1, 2), (0,), (6,)
EVERYTHING = (*COUNTERS, *MAP, *AGES, *FILE, *SIZE)
TWO_TABLES = "DELETE FROM m.cache; UPDATE m.plain SET v = 'x'"
MUTATIONS = {
    "the first table is skipped": Mutation(
        of_changes(lambda c: msgspec.structs.replace(c, tables=c.tables[1:])), TWO_TABLES
    ),
    "the last table is skipped": Mutation(
        of_changes(lambda c: msgspec.structs.replace(c, tables=c.tables[:-1])), TWO_TABLES
    ),
    "no table is put back": Mutation(
        of_changes(lambda c: msgspec.structs.replace(c, tables=[])), TWO_TABLES
    ),
    "rows are not filled in again": Mutation(forgetting_rows, TWO_TABLES),
    "one row is not what it was": Mutation(
        putting_back_the_wrong_rows, "UPDATE m.plain SET v = 'x'"
    ),
    "a trigger fires": Mutation(with_triggers, "UPDATE m.watched SET said = 'x'"),
    "nothing of a relation is looked at": Mutation(
        of_surveys(without_fields(*EVERYTHING)), TWO_TABLES
    ),
    "only sizes are looked at": Mutation(
        of_surveys(without_fields(*COUNTERS, *MAP, *AGES, *FILE)), "UPDATE m.cache SET v = 9"
    ),
    "the map is not looked at": Mutation(of_surveys(without_fields(*MAP)), REWINDABLE["uncounted"]),
    "ages are not looked at": Mutation(
        of_surveys(without_fields(*AGES)), REWINDABLE["uncounted, frozen"]
    ),
    "files are not looked at, nor counters and sizes": Mutation(
        of_surveys(without_fields(*FILE, *COUNTERS, *SIZE, *MAP, *AGES)), "TRUNCATE m.cache"
    ),
    "catalogs are trusted: a table": Mutation(trusting_catalogs, "CREATE VIEW m.more AS SELECT 1"),
    "catalogs are trusted: a privilege": Mutation(trusting_catalogs, NOT_REWINDABLE["grant"]),
    "catalogs are trusted: a comment": Mutation(trusting_catalogs, NOT_REWINDABLE["comment"]),
    "catalogs are trusted: a function": Mutation(trusting_catalogs, NOT_REWINDABLE["function"]),
    "catalogs are trusted: a trigger": Mutation(
        trusting_catalogs, NOT_REWINDABLE["disabled trigger"]
    ),
    "catalogs are trusted: a large object": Mutation(
        trusting_catalogs, NOT_REWINDABLE["large object"]
    ),
    "catalogs are trusted: a sequence": Mutation(
        trusting_catalogs, NOT_REWINDABLE["sequence altered"]
    ),
    "the database is trusted: a setting": Mutation(
        trusting_the_database, NOT_REWINDABLE["database set"]
    ),
    "sequences are not looked at": Mutation(
        of_surveys(blind_to_sequences), "SELECT nextval('m.free')"
    ),
    "the database is trusted: a privilege": Mutation(
        trusting_the_database, NOT_REWINDABLE["database grant"]
    ),
}


async def test_each_way_to_break_the_rewind_is_caught_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, mutation in MUTATIONS.items():
        with monkeypatch.context() as patch:
            mutation.apply(patch)
            await bench.renew()  # measured as the broken one measures
            caught = False
            try:
                await bench.lease(mutation.script, verify_every=1)
            except ProofError:
                caught = True
            assert caught, f"the proof did not see that {name}"
            assert await bench.look() != bench.pristine, f"the oracle did not see that {name}"
    await bench.renew()
    assert await bench.look() == bench.pristine


async def test_the_proof_finds_nothing_wrong_with_what_is_right(bench: Bench) -> None:
    for script in REWINDABLE.values():
        assert await bench.lease(script, verify_every=1)
