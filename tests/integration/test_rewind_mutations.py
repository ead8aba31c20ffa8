"""The rewind is broken on purpose: its own verification and the oracle find each fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from clonepool.postgres.rewind import (
    changes,
    inspection,
    restore,
    restore_sql,
    rewind_pass,
    row_locations,
    walinspect,
)
from clonepool.postgres.rewind.database_facts import DatabaseFacts
from clonepool.postgres.rewind.layout import Layout
from clonepool.postgres.rewind.planner_statistics import Estimates
from clonepool.postgres.rewind.relations import RelationKind
from clonepool.postgres.rewind.touched_pages import FileWrites, TouchedPages
from clonepool.postgres.rewind.verify import VerificationError
from support.integrity import problems
from support.kitchen_sink import NOT_REWINDABLE, REWINDABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.postgres.rewind.changes import Changes
    from support.rewinding import RewindHarness

pytestmark = pytest.mark.anyio
Patch = pytest.MonkeyPatch


def of_touches(change: Callable[[Changes], object]) -> Callable[[Patch], None]:
    """Return a mutation of what the log is understood to say."""
    real, again = changes.classify, changes.reclassify

    def changed(found: Changes) -> Changes:
        change(found)
        return found

    def apply(patch: Patch) -> None:
        patch.setattr(rewind_pass, "classify", lambda *a: changed(real(*a)))
        patch.setattr(rewind_pass, "reclassify", lambda *a: changed(again(*a)))

    return apply


def of_log(change: Callable[[FileWrites], FileWrites | None]) -> Callable[[Patch], None]:
    """Return a mutation of what is read in the log."""
    real = TouchedPages.add

    def add(self: TouchedPages, written: list[FileWrites]) -> None:
        real(self, [each for one in written if (each := change(one)) is not None])

    return lambda patch: patch.setattr(TouchedPages, "add", add)


def without_page(at: int) -> Callable[[FileWrites], FileWrites]:
    """Drop one page of each file."""

    def change(written: FileWrites) -> FileWrites:
        pages, positions = list(written.pages), list(written.positions)
        if pages:
            number = pages.index(min(pages) if at == 0 else max(pages))
            del pages[number], positions[number]
        return written._replace(pages=pages, positions=positions)

    return change


def not_waiting_for_the_flush(patch: Patch) -> None:
    """Read as far as the log happens to be on the disk."""
    patch.setattr(
        walinspect, "flush_plpgsql", lambda _, mark: f"{mark} := pg_current_wal_flush_lsn();"
    )


def reading_before_looking(patch: Patch) -> None:
    """Take what was read before for all that there is."""

    async def ask(self: Any, session: Any, requests: list[Any]) -> None:
        pages = self.reader.touched_pages
        await real(self, session, requests)
        for database in pages.followed:
            pages.forget(database)
            pages.follow(database)

    real = inspection.Inspector._ask
    patch.setattr(inspection.Inspector, "_ask", ask)


def trusting_catalogs(patch: Patch) -> None:
    async def check(*_: object) -> None:
        """See nothing."""

    patch.setattr(rewind_pass, "check_catalogs", check)


def trusting_the_database(patch: Patch) -> None:
    patch.setattr(DatabaseFacts, "check", lambda *_: None)


def knowing_all_files(patch: Patch) -> None:
    """Never ask anew which file belongs to which relation."""
    real = changes.classify

    def classify(*arguments: Any) -> Changes:
        found = real(*arguments)
        found.files_unknown = False
        return found

    patch.setattr(rewind_pass, "classify", classify)


def taking_new_files_for_old(patch: Patch) -> None:
    """Believe that a place in a new file means what it meant in the old one."""
    of_touches(lambda found: found.replaced.clear())(patch)
    patch.setattr(rewind_pass, "check_tables", lambda *_: None)


def of_differences(**changed: Any) -> Callable[[Patch], None]:
    """Return a mutation of what a table is found to differ in."""
    real = Layout.difference

    def difference(self: Layout, *arguments: Any) -> Any:
        return msgspec.structs.replace(real(self, *arguments), **changed)

    return lambda patch: patch.setattr(Layout, "difference", difference)


def taking_fresh_for_old(patch: Patch) -> None:
    """Take rows in the places of others for those."""
    real = row_locations.read_page_rows

    async def page_rows(*arguments: Any) -> tuple[list[Any], Any]:
        found, sizes = await real(*arguments)
        return [
            msgspec.structs.replace(p, old=set(p.old) | set(p.fresh), fresh=set()) for p in found
        ], sizes

    patch.setattr(restore, "read_page_rows", page_rows)
    real_expected = Layout.expected
    patch.setattr(
        Layout, "expected",
        lambda self, *a: AlwaysThere(real_expected(self, *a)),
    )  # fmt: skip


class AlwaysThere(set[bytes]):
    """A set that is never found to lack anything."""

    def __ge__(self, _: object) -> bool:
        return True


def forgetting_where_rows_are(patch: Patch) -> None:
    """Remember nothing of what was put back elsewhere."""
    patch.setattr(Layout, "remember", lambda *_: None)


def and_then(script: str) -> Callable[[Patch], None]:
    """Return a mutation that changes the clone without the rewind's knowledge."""
    real = restore_sql.put_back

    async def put_back(session: Any, *arguments: Any) -> Any:
        done = await real(session, *arguments)
        await session.execute(f"SET session_replication_role = origin; {script}")
        return done

    return lambda patch: patch.setattr(restore, "put_back", put_back)


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


def blind_to(kind: RelationKind) -> Callable[[Patch], None]:
    """Return a mutation that does not see files of that kind."""
    fields = {
        RelationKind.TABLE: "tables",
        RelationKind.SEQUENCE: "sequences",
        RelationKind.CATALOG: "catalogs",
    }
    return of_touches(lambda found: getattr(found, fields[kind]).clear())


def without_table(at: int) -> Callable[[Changes], object]:
    """Leave one table out."""
    return lambda found: found.tables.pop(sorted(found.tables)[at], None) if found.tables else None


class Mutation(NamedTuple):
    """A way to break the rewind, and what a lease has to do for it to matter.

    Attributes:
        before: what an earlier lease has to do.
    """

    apply: Callable[[Patch], None]
    script: str
    before: str = ""


LARGE = "UPDATE m.large SET t = 'epoch' WHERE id IN (7, 3000)"
TWO_TABLES = "DELETE FROM m.told; UPDATE m.plain SET v = 'x'"
UNSEEN = "UPDATE m.leaf SET id = 18; SET synchronous_commit = off; INSERT INTO m.twins VALUES ('x')"
MUTATIONS = {
    "the first table is skipped": Mutation(of_touches(without_table(0)), TWO_TABLES),
    "the last table is skipped": Mutation(of_touches(without_table(-1)), "DELETE FROM m.leaf"),
    "no table is put back": Mutation(blind_to(RelationKind.TABLE), TWO_TABLES),
    "new rows of a small table stay": Mutation(
        of_differences(delete=set()), "INSERT INTO m.twins VALUES ('x')"
    ),
    "missing rows of a small table stay missing": Mutation(
        of_differences(restore=set()), "DELETE FROM m.told WHERE id = 1"
    ),
    "new rows of a large table stay": Mutation(
        of_differences(delete=set()), "INSERT INTO m.large VALUES (7000)"
    ),
    "missing rows of a large table stay missing": Mutation(
        of_differences(restore=set()), "DELETE FROM m.large WHERE id = 9"
    ),
    "rows in the places of others are taken for those": Mutation(
        taking_fresh_for_old,
        "DELETE FROM m.twins WHERE ctid = '(0,1)'; VACUUM m.twins;"
        " INSERT INTO m.twins VALUES ('b')",
    ),
    "where rows are is forgotten": Mutation(
        forgetting_where_rows_are,
        "UPDATE m.large SET v = 'y' WHERE id = 9",
        before="UPDATE m.large SET v = 'x' WHERE id = 9",
    ),
    "one row is not what it was": Mutation(
        and_then("UPDATE m.plain SET v = v || 'x' WHERE id = 1"), "UPDATE m.plain SET v = 'x'"
    ),
    "a trigger fires": Mutation(
        and_then("UPDATE m.watched SET id = id"), "UPDATE m.watched SET said = 'x'"
    ),
    "nothing is read in the log": Mutation(of_log(lambda _: None), TWO_TABLES),
    "the log of another database is taken for ours": Mutation(
        of_log(lambda written: written._replace(database=written.database + 1)), TWO_TABLES
    ),
    "the log is not waited for": Mutation(not_waiting_for_the_flush, UNSEEN),
    "the log is read before the clone is looked at": Mutation(reading_before_looking, TWO_TABLES),
    "the first page is missed": Mutation(of_log(without_page(0)), LARGE),
    "the last page is missed": Mutation(
        of_log(without_page(-1)), "INSERT INTO m.large VALUES (7000)"
    ),
    "new files are not asked for": Mutation(knowing_all_files, "TRUNCATE m.told"),
    "new files are not asked for, written by the transaction that made them": Mutation(
        knowing_all_files, "BEGIN; TRUNCATE m.told; INSERT INTO m.told (id) VALUES (9); COMMIT"
    ),
    "places in a new file are taken for those in the old one": Mutation(
        taking_new_files_for_old, "DELETE FROM m.told WHERE id = 1; VACUUM FULL m.told"
    ),
    "unlogged tables are not looked at": Mutation(
        lambda patch: patch.setattr(rewind_pass, "add_unlogged", lambda found, _: found),
        "UPDATE m.cache SET v = 9",
    ),
    "catalogs are not looked at": Mutation(
        blind_to(RelationKind.CATALOG), "CREATE VIEW m.more AS SELECT 1"
    ),
    "catalogs are trusted: a table": Mutation(trusting_catalogs, "CREATE VIEW m.more AS SELECT 1"),
    "catalogs are trusted: a column": Mutation(
        trusting_catalogs, "ALTER TABLE m.plain ADD COLUMN more int DEFAULT 7"
    ),
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
    "catalogs are trusted: statistics": Mutation(
        trusting_catalogs, NOT_REWINDABLE["analyzed otherwise"]
    ),
    "the database is trusted: a setting": Mutation(
        trusting_the_database, NOT_REWINDABLE["database set"]
    ),
    "the database is trusted: a privilege": Mutation(
        trusting_the_database, NOT_REWINDABLE["database grant"]
    ),
    "sequences are not looked at": Mutation(
        blind_to(RelationKind.SEQUENCE), "SELECT nextval('m.free')"
    ),
    "statistics are not put back": Mutation(
        forgetting_estimates, "DELETE FROM m.told WHERE id > 1; VACUUM m.told"
    ),
    "statistics of a large table are not put back": Mutation(
        forgetting_estimates, "UPDATE pg_class SET reltuples = 7 WHERE relname = 'large'"
    ),
    "an index misses a row": Mutation(
        and_then(behind_an_index("m.plain_pkey", "m.plain", "id = 7")), TWO_TABLES
    ),
    "an index of a large table misses a row": Mutation(
        and_then(behind_an_index("m.large_v_key", "m.large", "id = 4000")), LARGE
    ),
    "a large table is changed after its repair": Mutation(
        and_then("UPDATE m.large SET t = 'epoch' WHERE id = 4000"), LARGE
    ),
}


@pytest.mark.long
async def test_each_way_to_break_the_rewind_is_caught_twice(
    harness: RewindHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, mutation in MUTATIONS.items():
        with monkeypatch.context() as patch:
            mutation.apply(patch)
            await harness.rewinder.inspector.close()  # its procedure was made by the sound one
            await harness.recreate()  # measured as the broken one measures
            caught = False
            if mutation.before:
                await harness.lease(mutation.before)
            try:
                await harness.lease(mutation.script, verify_every=1)
            except VerificationError:
                caught = True
            assert caught, f"the proof did not see that {name} ({harness.why})"
            sick = problems(harness.server.psql, harness.server.endpoint, harness.clone)
            assert sick or await harness.look() != harness.pristine, (
                f"the oracle did not see that {name}"
            )
    await harness.recreate()
    assert await harness.look() == harness.pristine


@pytest.mark.long
async def test_the_proof_finds_nothing_wrong_with_what_is_right(harness: RewindHarness) -> None:
    for script in REWINDABLE.values():
        assert await harness.lease(script, verify_every=1), f"{script}: {harness.why}"
