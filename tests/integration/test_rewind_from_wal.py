"""What the WAL says about each clone, and where it could mislead.

Each trap that PostgreSQL sets is stepped into here; what falls in without its guard is among the
mutations of the rewind, or shown here by taking the guard away.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import asyncpg
import pytest

from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.quoting import identifier
from clonepool.postgres.rewind import restore, restore_sql, touched_pages, walinspect
from clonepool.postgres.rewind.errors import CannotRewindError, LockOutError
from clonepool.postgres.rewind.relations import RelationKind
from clonepool.postgres.session import Session
from clonepool.postgres.templates import generations
from support.kitchen_sink import run_script
from support.rewinding import RewindHarness, open_harness

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer

pytestmark = pytest.mark.anyio

TABLES = 12
SCHEMA = "CREATE SCHEMA m;\n" + "".join(
    f"CREATE TABLE m.t{n} (id serial PRIMARY KEY, v text);\n"
    f"INSERT INTO m.t{n} (v) SELECT 'row' FROM generate_series(1, 30);\n"
    for n in range(TABLES)
)
FIRST_POSITION = 0x1000028
"""Where the log of a new cluster begins."""
ASYNCHRONOUS = "SET synchronous_commit = off"


async def connect(harness: RewindHarness, clone: str) -> asyncpg.Connection[asyncpg.Record]:
    return await asyncpg.connect(
        dsn=harness.server.endpoint.asyncpg_url(clone), statement_cache_size=0
    )


async def touched(harness: RewindHarness, clone: str) -> set[str]:
    """Return which tables the log says were written to since the clone was clean."""
    rewinder = harness.rewinder
    await rewinder.inspect(clone)
    state = rewinder.clean_state(clone)
    assert state is not None
    files = rewinder.inspector.reader.touched_pages.touched(state.facts.oid, state.clean_lsn)
    assert files is not None
    relations = [state.files[file] for file in files if file in state.files]
    tables = state.baseline.tables
    return {
        tables[one.oid].name.split(chr(34))[3]
        for one in relations
        if one.kind is RelationKind.TABLE
    }


async def test_each_of_many_clones_gets_its_own_however_their_leases_are_mixed(
    any_server: EmbeddedServer,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    choice = random.Random(seed)
    async with open_harness(any_server, SCHEMA, looks=False) as harness, AsyncExitStack() as stack:
        clones = [harness.clone, *[await harness.another() for _ in range(3)]]
        connections = []
        for clone in clones:
            connection = await connect(harness, clone)
            stack.push_async_callback(connection.close)
            connections.append((clone, connection))
        written: dict[str, set[str]] = {clone: set() for clone in clones}
        for _ in range(120):
            clone, connection = choice.choice(connections)
            table = f"t{choice.randrange(TABLES)}"
            insert = f"INSERT INTO m.{table} (v) SELECT 'x' FROM generate_series(1, 20)"
            match choice.randrange(7):
                case 0:
                    assert await touched(harness, clone) == written[clone], f"seed {seed}"
                case 1:
                    await connection.execute("SELECT count(*) FROM m.t0 JOIN m.t1 USING (id)")
                case 2:
                    await connection.execute("CHECKPOINT")
                case 3:
                    await connection.execute(f"BEGIN; {insert}; ROLLBACK")
                    written[clone].add(table)
                case 4:
                    await connection.execute(f"{ASYNCHRONOUS}; {insert}")
                    written[clone].add(table)
                case 5:
                    await connection.execute(f"RESET synchronous_commit; {insert}")
                    written[clone].add(table)
                case _:
                    await harness.rewinder.inspect(choice.choice(clones))
        for clone in clones:
            assert await touched(harness, clone) == written[clone], f"seed {seed}"


LEFT_BEHIND = {
    "committed, not flushed": f"{ASYNCHRONOUS}; UPDATE m.t1 SET v = 'x' WHERE id = 1",
    "rolled back": f"{ASYNCHRONOUS}; BEGIN; UPDATE m.t1 SET v = 'x' WHERE id = 1; ROLLBACK",
    "killed": f"{ASYNCHRONOUS}; BEGIN; UPDATE m.t1 SET v = 'x' WHERE id = 1;"
    " SELECT pg_terminate_backend(pg_backend_pid())",
}


@pytest.mark.parametrize("script", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
async def test_what_is_not_flushed_yet_is_read_all_the_same(
    any_server: EmbeddedServer, script: str
) -> None:
    async with open_harness(any_server, SCHEMA, looks=False) as harness:
        connection = await connect(harness, harness.clone)
        try:
            await connection.execute(script)
        except asyncpg.PostgresError:
            pass
        finally:
            connection.terminate()
        assert await touched(harness, harness.clone) == {"t1"}


USES = ("SELECT nextval('m.t1_id_seq')", "SELECT setval('m.t1_id_seq', 7)")


async def test_every_use_of_a_sequence_is_seen_after_any_other(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        for script in (*USES, *USES, f"CHECKPOINT; {USES[0]}", USES[0], f"{USES[0]}; {USES[0]}"):
            assert await harness.lease(script), harness.why
            assert await harness.look() == harness.pristine, script
        async with harness.tools.gateway.session(harness.clone) as session:
            sealed = await session.value("SELECT log_cnt FROM m.t1_id_seq")
        assert sealed == 0, "or the next 32 values would be taken unseen"


async def test_a_sequence_that_is_not_set_before_the_seal_is_used_unseen(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "_SET_SEQUENCE", "SELECT NULL AS sql WHERE false")
    async with open_harness(any_server, SCHEMA) as harness:
        await harness.lease(USES[0])
        assert await harness.look() != harness.pristine, "then it need not be set"


OF_CATALOGS = {
    "pg_class written anew": "VACUUM FULL pg_class",
    "pg_proc written anew": "VACUUM FULL pg_proc",
    "pg_class's indexes": "REINDEX TABLE pg_class",
    "a catalog that pg_class names": "VACUUM FULL pg_description",
}


@pytest.mark.parametrize("script", OF_CATALOGS.values(), ids=OF_CATALOGS)
async def test_catalogs_with_other_files_are_followed_there(
    any_server: EmbeddedServer, script: str
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        await harness.lease(script)
        assert await harness.look() == harness.pristine
        assert await harness.lease("SELECT count(*) FROM m.t1"), harness.why
        for change in (
            "CREATE FUNCTION m.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "COMMENT ON TABLE m.t1 IS 'x'",
            "ALTER TABLE m.t1 ADD COLUMN more int DEFAULT 5",
        ):
            await harness.lease(script)
            assert not await harness.lease(change), change
            assert await harness.look() == harness.pristine


FILES_CHANGED = {
    "cut off by VACUUM": "INSERT INTO m.t1 (v)"
    " SELECT repeat('x', 500) FROM generate_series(1, 900);"
    " DELETE FROM m.t1 WHERE id > 5; VACUUM m.t1",
    "emptied and cut off": "DELETE FROM m.t1; VACUUM m.t1",
    "made, filled and dropped": "CREATE TABLE m.more AS SELECT * FROM m.t1; DROP TABLE m.more",
    "truncated and filled at once": "BEGIN; TRUNCATE m.t1 RESTART IDENTITY;"
    " INSERT INTO m.t1 (v) VALUES ('x'); COMMIT",
    "truncated, rolled back": "BEGIN; TRUNCATE m.t1; INSERT INTO m.t1 (v) VALUES ('x'); ROLLBACK",
    "written anew without a row": "DELETE FROM m.t1 WHERE id = 7; VACUUM FULL m.t1",
    "rewritten and back": "ALTER TABLE m.t1 ALTER id TYPE bigint;"
    " ALTER TABLE m.t1 ALTER id TYPE int",
    "a column with a default": "ALTER TABLE m.t1 ADD COLUMN more int DEFAULT 5",
    "the database commented on": "DO $$ BEGIN"
    " EXECUTE format('COMMENT ON DATABASE %I IS ''x''', current_database());"
    " END $$; UPDATE m.t1 SET v = 'x'",
}


@pytest.mark.parametrize("script", FILES_CHANGED.values(), ids=FILES_CHANGED)
async def test_what_names_no_page_in_the_log_is_no_way_around_it(
    any_server: EmbeddedServer, script: str
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        for _ in range(2):
            await harness.lease(script)
            assert await harness.look() == harness.pristine
            await harness.lease("UPDATE m.t1 SET v = 'y' WHERE id IN (1, 30)")
            assert await harness.look() == harness.pristine


async def write_much(harness: RewindHarness, clone: str, mebibytes: int) -> None:
    """Fill and empty a table, so that so much is written into the log."""
    connection = await connect(harness, clone)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS m.much (v text)")
        for _ in range(mebibytes):
            await connection.execute(
                "INSERT INTO m.much SELECT repeat('x', 1000) FROM generate_series(1, 950)"
            )
    finally:
        await connection.close()


async def test_a_log_that_was_thrown_away_unread_means_recreate_and_no_more(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        await write_much(harness, await harness.another(), 160)
        for _ in range(3):
            await anyio.to_thread.run_sync(
                run_script,
                harness.server.psql,
                harness.server.endpoint,
                harness.clone,
                "CHECKPOINT",
            )
        harness.rewinder.inspector.reader.position = FIRST_POSITION  # a reader that fell behind
        assert not await harness.lease("UPDATE m.t1 SET v = 'x'")
        assert "WAL is gone" in harness.why
        assert await harness.look() == harness.pristine
        assert await harness.lease("UPDATE m.t1 SET v = 'x'"), harness.why
        assert await harness.look() == harness.pristine


async def test_what_a_long_lease_writes_is_read_as_it_goes_and_does_not_pile_up(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touched_pages, "MOST_PAGES", 500)
    async with open_harness(any_server, SCHEMA) as harness:
        rewinder = harness.rewinder
        for _ in range(6):
            await write_much(harness, harness.clone, 4)
            before = rewinder.inspector.reader.position
            await rewinder.catch_up()
            assert rewinder.inspector.reader.position != before
        state = rewinder.clean_state(harness.clone)
        assert state is not None
        assert rewinder.inspector.reader.touched_pages.page_count(state.facts.oid) < 2000
        assert not await harness.recycle()
        assert await harness.look() == harness.pristine


async def test_a_log_longer_than_a_window_is_read_piece_by_piece(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walinspect, "WINDOW_BYTES", 512)
    async with open_harness(any_server, SCHEMA) as harness:
        for n in range(3):
            await anyio.to_thread.run_sync(
                run_script, harness.server.psql, harness.server.endpoint, harness.clone,
                f"UPDATE m.t{n} SET v = repeat(md5(v), 200); DELETE FROM m.t{n + 3}; CHECKPOINT;"
                " SELECT pg_logical_emit_message(true, 'x', repeat('x', 9000))",
            )  # fmt: skip
            assert await touched(harness, harness.clone) == {f"t{n}", f"t{n + 3}"}
            assert await harness.recycle(), harness.why
            assert await harness.look() == harness.pristine


async def test_copies_through_the_log_are_passed_over(any_server: EmbeddedServer) -> None:
    async with open_harness(any_server, SCHEMA, looks=False) as harness:
        connection = await connect(harness, harness.clone)
        await connection.execute("INSERT INTO m.t3 (v) VALUES ('x')")
        names = [f"{harness.clone[:40]}_w{n}" for n in range(2)]
        try:
            for name in names:
                await make_clone(
                    harness.tools.gateway, name, harness.generation.database,
                    harness.generation.contents, options="STRATEGY WAL_LOG", facts={}, seconds=60,
                )  # fmt: skip
            await connection.execute("INSERT INTO m.t4 (v) VALUES ('x')")
            await connection.close()
            assert await touched(harness, harness.clone) == {"t3", "t4"}
            assert len(harness.rewinder.inspector.reader.touched_pages.followed) == 1
        finally:
            for name in names:
                await harness.tools.gateway.ddl(f"DROP DATABASE IF EXISTS {identifier(name)}")


async def test_the_reader_goes_on_where_it_was_when_a_lease_ends_its_session(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        for _ in range(2):
            assert await harness.lease(
                "UPDATE m.t1 SET v = 'x'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND query LIKE '%clonepool_inspect%'"
            ), harness.why
            assert await harness.look() == harness.pristine


async def test_a_clone_is_not_taken_for_clean_when_the_server_was_away(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        harness.rewinder.server_lost()
        assert not await harness.lease("SELECT 1")
        assert "the server was away" in harness.why
        assert await harness.lease("UPDATE m.t1 SET v = 'x'"), harness.why


async def test_of_a_log_that_is_written_faster_than_it_is_read_nothing_is_read(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walinspect, "MOST_BEHIND_BYTES", 1024 * 1024)
    async with open_harness(any_server, SCHEMA) as harness:
        await write_much(harness, await harness.another(), 4)
        assert not await harness.lease("UPDATE m.t1 SET v = 'x'")
        assert "WAL is gone" in harness.why
        assert await harness.lease("UPDATE m.t1 SET v = 'x'"), harness.why
        assert await harness.look() == harness.pristine


async def test_clones_that_come_back_together_are_looked_at_together(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[list[str]] = []
    real = Session.rows

    async def rows(self: Session, sql: str, *arguments: Any, **more: Any) -> Any:
        if "clonepool_inspect" in sql:
            looks.append(arguments[1])
            await anyio.sleep(0.05)  # sleeps: a look takes that long
        return await real(self, sql, *arguments, **more)

    async with open_harness(any_server, SCHEMA, looks=False) as harness:
        clones = [harness.clone, *[await harness.another() for _ in range(5)]]
        for number, clone in enumerate(clones):
            connection = await connect(harness, clone)
            await connection.execute(f"INSERT INTO m.t{number} (v) VALUES ('x')")
            await connection.close()
        monkeypatch.setattr(Session, "rows", rows)
        found = {}

        async def look(clone: str) -> None:
            found[clone] = (await harness.rewinder.inspect(clone)).facts.oid

        async with anyio.create_task_group() as tasks:
            for clone in clones:
                tasks.start_soon(look, clone)
        assert sum(map(len, looks)) == len(clones)
        assert len(looks) <= 2, "the first alone, perhaps, then all that waited"
        assert len(set(found.values())) == len(clones)
        for number, clone in enumerate(clones):
            assert await touched(harness, clone) == {f"t{number}"}


async def test_a_look_that_is_given_up_is_not_the_end_of_those_beside_it(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_harness(any_server, SCHEMA, looks=False) as harness:
        other = await harness.another()
        connection = await connect(harness, other)
        await connection.execute("INSERT INTO m.t5 (v) VALUES ('x')")
        await connection.close()
        real, held = Session.rows, anyio.Event()

        async def rows(self: Session, sql: str, *arguments: Any, **more: Any) -> Any:
            if "clonepool_inspect" in sql and not held.is_set():
                held.set()
                await anyio.sleep_forever()
            return await real(self, sql, *arguments, **more)

        monkeypatch.setattr(Session, "rows", rows)
        async with anyio.create_task_group() as tasks:
            leader = anyio.CancelScope()

            async def lead() -> None:
                with leader:
                    await harness.rewinder.inspect(harness.clone)

            tasks.start_soon(lead)
            await held.wait()
            tasks.start_soon(harness.rewinder.inspect, other)
            await anyio.wait_all_tasks_blocked()
            leader.cancel()
        assert await touched(harness, other) == {"t5"}


async def test_what_shared_catalogs_say_is_not_remembered_before_it_is_committed(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA, looks=False) as harness:
        rewinder, clone = harness.rewinder, harness.clone
        before = (await rewinder.inspect(clone)).facts.entries.properties
        stray = await connect(harness, clone)
        await stray.execute(f"BEGIN; ALTER DATABASE {identifier(clone)} SET work_mem = '44MB'")
        assert (await rewinder.inspect(clone)).facts.entries.properties == before, (
            "nobody sees it yet"
        )
        await rewinder.inspect(clone)
        await stray.execute("COMMIT")
        await stray.close()
        seen = await rewinder.inspect(clone)
        assert seen.facts.entries.properties != before
        with pytest.raises(CannotRewindError, match="properties"):
            await rewinder.rewind(clone, {}, inspection=seen)


async def test_one_record_of_the_log_that_is_larger_than_any_window_is_got_over(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        connection = await connect(harness, harness.clone)
        await connection.execute(
            "UPDATE m.t1 SET v = 'x'; SELECT pg_logical_emit_message(false, 'x',"
            " repeat('y', 20000000)); UPDATE m.t2 SET v = 'x'"
        )
        await connection.close()
        assert await touched(harness, harness.clone) == {"t1", "t2"}
        assert await harness.recycle(), harness.why
        assert await harness.look() == harness.pristine


async def test_a_query_in_another_encoding_spoils_nothing_for_others(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA) as harness:
        name = f"{harness.clone[:40]}_latin1"
        await harness.tools.gateway.ddl(
            f"CREATE DATABASE {identifier(name)} TEMPLATE template0 ENCODING LATIN1"
            " LOCALE 'C' LOCALE_PROVIDER libc"
        )
        try:
            connection = await connect(harness, name)
            await connection.execute("SELECT 'é'")
            seen = await harness.rewinder.inspect(name)
            assert [session["state"] for session in seen.facts.sessions] == ["idle"]
            await connection.close()
            assert await harness.lease("UPDATE m.t1 SET v = 'x'"), harness.why
        finally:
            await harness.tools.gateway.ddl(f"DROP DATABASE {identifier(name)} WITH (FORCE)")


async def test_a_lock_out_that_has_to_wait_delays_no_other_clone(
    any_server: EmbeddedServer,
) -> None:
    async with open_harness(any_server, SCHEMA, looks=False) as harness:
        other, role = await harness.another(), identifier(f"{harness.clone[:40]}_r")
        holder = await connect(harness, harness.clone)
        await holder.execute(f"CREATE ROLE {role}")
        try:
            await holder.execute(f"BEGIN; ALTER ROLE {role} CONNECTION LIMIT 5")
            refused: list[LockOutError] = []

            async def look() -> None:
                try:
                    await harness.rewinder.inspect(
                        harness.clone, lock_out=f"ALTER ROLE {role} NOLOGIN"
                    )
                except LockOutError as error:
                    refused.append(error)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(look)
                tasks.start_soon(harness.rewinder.inspect, other)
            assert len(refused) == 1
            await holder.execute("ROLLBACK")
        finally:
            await holder.execute(f"DROP ROLE {role}")
            await holder.close()


async def test_what_others_write_to_catalogs_while_a_clone_is_undone_is_seen_next_time(
    any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = restore_sql.put_back

    async def put_back(*arguments: Any) -> Any:
        await anyio.to_thread.run_sync(
            run_script, harness.server.psql, harness.server.endpoint, harness.clone,
            "SET default_statistics_target = 1; ANALYZE m.t2",
        )  # fmt: skip
        return await real(*arguments)

    async with open_harness(any_server, SCHEMA) as harness:
        monkeypatch.setattr(restore, "put_back", put_back)
        await harness.lease("UPDATE m.t1 SET v = 'x'")
        monkeypatch.undo()
        await harness.lease("SELECT 1")
        assert await harness.look() == harness.pristine
