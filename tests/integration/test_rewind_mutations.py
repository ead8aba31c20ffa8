"""The rewind is broken on purpose: its own proof and the oracle catch every way of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from clonepool.postgres.rewind import changes, repair, rewinder, rows, undo
from clonepool.postgres.rewind.estimates import Estimates
from clonepool.postgres.rewind.facts import Facts
from clonepool.postgres.rewind.proof import ProofError
from clonepool.postgres.rewind.survey import take_survey
from support.health import ailments
from support.museum import NOT_REWINDABLE, REWINDABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.rewind.changes import Changes
    from clonepool.postgres.rewind.survey import Survey
    from support.rewinding import Bench

pytestmark = pytest.mark.anyio
Patch = pytest.MonkeyPatch


def of_changes(change: Callable[[Changes], Changes]) -> Callable[[Patch], None]:
    """Return a mutation of what is found to have changed."""
    real = changes.find_changes

    async def find(*arguments: Any) -> Changes:
        return change(await real(*arguments))

    return lambda patch: patch.setattr(rewinder, "find_changes", find)


def of_surveys(blind: Callable[[Survey], Survey]) -> Callable[[Patch], None]:
    """Return a mutation of what is seen of a clone."""
    real = take_survey

    async def take(*arguments: Any, **more: Any) -> Survey:
        return blind(await real(*arguments, **more))

    return lambda patch: patch.setattr(rewinder, "take_survey", take)


def without_fields(*numbers: int) -> Callable[[Survey], Survey]:
    """Be blind to some of the numbers that tell a relation's state."""

    def seen(line: bytes) -> bytes:
        oid, state, *others = line.split(b";")
        if b"," not in state:
            return line  # a sequence's
        parts = [
            b"0" if number in numbers else part for number, part in enumerate(state.split(b","))
        ]
        return b";".join([oid, b",".join(parts), *others])

    return lambda survey: survey._replace(lines=frozenset(map(seen, survey.lines)))


def trusting_catalogs(patch: Patch) -> None:
    async def check(*_: object) -> None:
        """See nothing."""

    patch.setattr(changes, "_check_catalogs", check)


def trusting_the_database(patch: Patch) -> None:
    patch.setattr(Facts, "check", lambda *_: None)


def forgetting_rows(patch: Patch) -> None:
    real = undo.Undo._put_back

    async def put_back(self: Any, statements: list[str], fills: list[Any], *others: Any) -> int:
        kept = [sql for sql in statements if not sql.startswith("INSERT")]
        return await real(self, kept, [(table, rows, 0) for table, rows, _ in fills], *others)

    patch.setattr(undo.Undo, "_put_back", put_back)


def of_rows(**changed: Any) -> Callable[[Patch], None]:
    """Return a mutation of how small tables are found to differ."""
    real = rows.compare_rows

    async def compare(*arguments: Any) -> list[Any]:
        return [msgspec.structs.replace(one, **changed) for one in await real(*arguments)]

    return lambda patch: patch.setattr(undo, "compare_rows", compare)


def and_then(script: str) -> Callable[[Patch], None]:
    """Return a mutation that does something to the clone behind everybody's back."""
    real = undo.Undo._put_back

    async def put_back(self: Any, *arguments: Any) -> int:
        xmin = await real(self, *arguments)
        await self._session.execute(f"SET session_replication_role = origin; {script}")
        return xmin

    return lambda patch: patch.setattr(undo.Undo, "_put_back", put_back)


def forgetting_estimates(patch: Patch) -> None:
    async def put_back(*_: object) -> bool:
        """Let the planner believe what it believes."""
        return False

    patch.setattr(Estimates, "put_back", put_back)


def behind_an_index(index: str, table: str, condition: str) -> str:
    """Return SQL that moves a row to a place which this index does not know."""
    of_index = f"WHERE indexrelid = '{index}'::regclass"
    return (
        f"UPDATE pg_index SET indisready = false {of_index};"
        f"WITH moved AS (DELETE FROM ONLY {table} WHERE {condition} RETURNING *)"
        f" INSERT INTO {table} SELECT * FROM moved;"
        f"UPDATE pg_index SET indisready = true {of_index}"
    )


def without_sequences(survey: Survey) -> Survey:
    """Be blind to what sequences say."""
    return survey._replace(
        lines=frozenset(line for line in survey.lines if b"," in line.split(b";")[1])
    )


def unchecked(change: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Let a mutation of the repair get past the look that follows each."""

    async def check(_: Any, done: Any, *__: Any) -> Any:
        return done.before, []

    def apply(patch: Patch) -> None:
        change(patch)
        patch.setattr(undo, "check_repair", check)

    return apply


def of_repairs(name: str, change: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Return a mutation of what a step of planning a repair says, unchecked."""
    real = getattr(repair, name)

    async def step(*arguments: Any) -> Any:
        return change(await real(*arguments))

    return unchecked(lambda patch: patch.setattr(repair, name, step))


def of_differences(**changed: Any) -> Callable[[Patch], None]:
    """Return a mutation of what a large table is found to differ in, unchecked."""
    real = repair.compare

    def compare(*arguments: Any) -> Any:
        return msgspec.structs.replace(real(*arguments), **changed)

    return unchecked(lambda patch: patch.setattr(repair, "compare", compare))


class Mutation(NamedTuple):
    """A way to break the rewind, and what a lease has to do for it to matter."""

    apply: Callable[[Patch], None]
    script: str


COUNTERS, MAP, AGES, FILE = (4, 5, 6), (7, 8), (1, 2, 3), (0,)
EVERYTHING = (*COUNTERS, *MAP, *AGES, *FILE)
LARGE = "UPDATE m.large SET t = 'epoch' WHERE id IN (7, 3000)"
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
    "new rows of a small table stay": Mutation(
        of_rows(delete=[]), "INSERT INTO m.twins VALUES ('x')"
    ),
    "missing rows of a small table stay missing": Mutation(
        of_rows(restore=[]), "DELETE FROM m.told WHERE id = 1"
    ),
    "one row is not what it was": Mutation(
        and_then("UPDATE m.plain SET v = v || 'x' WHERE id = 1"), "UPDATE m.plain SET v = 'x'"
    ),
    "a trigger fires": Mutation(
        and_then("UPDATE m.watched SET id = id"), "UPDATE m.watched SET said = 'x'"
    ),
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
    "files are not looked at, nor counters": Mutation(
        of_surveys(without_fields(*FILE, *COUNTERS, *MAP, *AGES)), "UPDATE m.leaf SET id = 18"
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
        of_surveys(without_sequences), "SELECT nextval('m.free')"
    ),
    "the database is trusted: a privilege": Mutation(
        trusting_the_database, NOT_REWINDABLE["database grant"]
    ),
    "statistics are not put back": Mutation(
        forgetting_estimates, "DELETE FROM m.told WHERE id > 1; VACUUM m.told"
    ),
    "statistics of a large table are not put back": Mutation(
        forgetting_estimates, "UPDATE pg_class SET reltuples = 7 WHERE relname = 'large'"
    ),
    "catalogs are trusted: statistics": Mutation(
        trusting_catalogs, NOT_REWINDABLE["analyzed otherwise"]
    ),
    "an index misses a row": Mutation(
        and_then(behind_an_index("m.plain_pkey", "m.plain", "id = 7")), TWO_TABLES
    ),
    "an index of a large table misses a row": Mutation(
        unchecked(and_then(behind_an_index("m.large_v_key", "m.large", "id = 4000"))), LARGE
    ),
    "no page counts as written to": Mutation(of_repairs("written_since", lambda _: []), LARGE),
    "the first page is missed": Mutation(
        of_repairs("written_since", lambda pages: pages[1:]), LARGE
    ),
    "the last page is missed": Mutation(
        of_repairs("written_since", lambda pages: pages[:-1]), "INSERT INTO m.large VALUES (7000)"
    ),
    "new rows of a large table stay": Mutation(
        of_differences(delete=frozenset()), "INSERT INTO m.large VALUES (7000)"
    ),
    "missing rows of a large table stay missing": Mutation(
        of_differences(restore=frozenset()), "DELETE FROM m.large WHERE id = 9"
    ),
    "a large table is changed after its repair": Mutation(
        unchecked(and_then("UPDATE m.large SET t = 'epoch' WHERE id = 4000")), LARGE
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
            assert caught, f"the proof did not see that {name} ({bench.why})"
            sick = ailments(bench.server.psql, bench.server.endpoint, bench.clone)
            assert sick or await bench.look() != bench.pristine, (
                f"the oracle did not see that {name}"
            )
    await bench.renew()
    assert await bench.look() == bench.pristine


async def test_the_proof_finds_nothing_wrong_with_what_is_right(bench: Bench) -> None:
    for script in REWINDABLE.values():
        assert await bench.lease(script, verify_every=1)
