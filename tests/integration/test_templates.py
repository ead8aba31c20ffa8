from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.config import TemplateSection
from clonepool.core.naming import Identity, Kind
from clonepool.errors import StatementError, TemplateFailedError
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.gateway import OWN_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from support.servers import ServerTools

pytestmark = pytest.mark.anyio


async def ours(tools: ServerTools, template: str) -> list[databases.Database]:
    found, _ = await databases.list_ours(tools.gateway, tools.namer)
    return [database for database in found if database.identity.template == template]


async def test_an_unchanged_template_is_found_and_not_built_again(
    tools: ServerTools, place: Path
) -> None:
    (place / "a.sql").write_text("CREATE TABLE t (a int);")
    first = await tools.build(["*.sql"], place, "reused")
    again = await tools.build(["*.sql"], place, "reused")
    assert (first.reused, again.reused) == (False, True)
    assert (again.database, again.contents) == (first.database, first.contents)


async def test_a_changed_file_makes_another_generation_and_the_old_one_is_dropped(
    tools: ServerTools, place: Path
) -> None:
    (place / "a.sql").write_text("CREATE TABLE t (a int);")
    first = await tools.build(["*.sql"], place, "changed")
    (place / "a.sql").write_text("CREATE TABLE t (a int, b int);")
    second = await tools.build(["*.sql"], place, "changed")
    assert not second.reused
    assert second.database != first.database
    assert await tools.builder.generations.drop_others({"changed"}, {second.database}) == [
        first.database
    ]


async def test_a_generation_is_sealed_frozen_and_annotated(tools: ServerTools, place: Path) -> None:
    (place / "a.sql").write_text("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a;")
    generation = await tools.build(["*.sql"], place, "sealed")
    (database,) = await ours(tools, "sealed")
    assert database.sealed
    assert database.comment["template"] == "sealed"
    with pytest.raises(StatementError, match="not currently accepting connections"):
        await tools.gateway.connect(generation.database)
    await databases.create(tools.gateway, "look_inside", generation.database, "", 30)
    async with tools.gateway.session("look_inside", OWN_NAMES) as session:
        (row,) = await session.rows(
            "SELECT relallvisible = relpages AS frozen, reltuples::int AS analysed"
            " FROM pg_class WHERE relname = 't'"
        )
    await databases.drop(tools.gateway, "look_inside")
    assert row == {"frozen": True, "analysed": 1000}


async def test_a_failing_file_is_told_precisely_and_leaves_nothing(
    tools: ServerTools, place: Path
) -> None:
    (place / "1.sql").write_text("CREATE TABLE t (a int UNIQUE);")
    (place / "2.sql").write_text("INSERT INTO t VALUES (1);\n\nINSERT INTO t\n  VALUES (1);\n")
    with pytest.raises(TemplateFailedError) as caught:
        await tools.build(["*.sql"], place, "failing")
    message = str(caught.value)
    assert message.startswith(f"{place}/2.sql:4: duplicate key value")
    assert "(SQLSTATE 23505) in statement: INSERT INTO t VALUES (1);" in message
    assert await ours(tools, "failing") == []


async def test_a_build_that_takes_too_long_is_ended_and_leaves_nothing(
    tools: ServerTools, place: Path
) -> None:
    (place / "a.sql").write_text("SELECT pg_sleep(60);")
    with pytest.raises(TemplateFailedError, match=r"took longer than 0\.5 s"):
        await tools.make(TemplateSection(sql=["*.sql"], build_timeout=0.5), place, "slow")
    assert await ours(tools, "slow") == []


async def test_files_run_in_natural_order_with_psqls_own_commands(
    tools: ServerTools, place: Path
) -> None:
    (place / "rows.csv").write_text("7\n8\n")
    (place / "part.inc").write_text("INSERT INTO t VALUES (1);")
    (place / "2.sql").write_text("CREATE TABLE t (a int);\n\\i part.inc\n")
    (place / "10.sql").write_text("\\copy t FROM rows.csv\nCOPY t FROM stdin;\n9\n\\.\n")
    generation = await tools.build(["*.sql"], place, "ordered")
    await databases.create(tools.gateway, "look_inside", generation.database, "", 30)
    async with tools.gateway.session("look_inside", OWN_NAMES) as session:
        rows = await session.rows("SELECT a FROM t ORDER BY a")
    await databases.drop(tools.gateway, "look_inside")
    assert [row["a"] for row in rows] == [1, 7, 8, 9]


async def test_a_half_built_template_is_not_taken_for_one(tools: ServerTools, place: Path) -> None:
    (place / "a.sql").write_text("CREATE TABLE t (a int);")
    whole = await tools.build(["*.sql"], place, "half")
    await databases.drop(tools.gateway, whole.database, sealed=True)
    # Somebody made a database of the right name by hand: neither sealed nor annotated.
    await databases.create(tools.gateway, whole.database, "template0", "", 30)
    rebuilt = await tools.build(["*.sql"], place, "half")
    assert not rebuilt.reused
    (database,) = await ours(tools, "half")
    assert database.sealed


async def test_a_database_that_only_looks_like_ours_is_left_alone_and_reported(
    tools: ServerTools,
) -> None:
    forged = tools.namer.name(Identity(Kind.CLONE, "blog", "abcdefgh", 5))[:-1] + "8"
    await databases.create(tools.gateway, forged, "template0", "", 30)
    found, strangers = await databases.list_ours(tools.gateway, tools.namer)
    await databases.drop(tools.gateway, forged)
    assert forged in strangers
    assert forged not in [database.name for database in found]


async def test_a_clone_has_the_databases_settings_privileges_and_limit(
    any_tools: ServerTools, place: Path
) -> None:
    tools = any_tools
    (place / "a.sql").write_text("""
CREATE SCHEMA "odd, one"; CREATE SCHEMA two;
CREATE ROLE somebody;
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = "odd, one", two', current_database());
    EXECUTE format('ALTER DATABASE %I SET app.colour = %L', current_database(), 'it''s = red');
    EXECUTE format('ALTER ROLE somebody IN DATABASE %I SET work_mem = %L',
                   current_database(), '7MB');
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CREATE ON DATABASE %I TO somebody WITH GRANT OPTION',
                   current_database());
    EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 17', current_database());
END $$;
""")
    generation = await tools.build(["*.sql"], place, "properties")
    name = tools.namer.name(Identity(Kind.CLONE, "properties", generation.short, 1))
    try:
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
            assert await session.value("SHOW search_path") == '"odd, one", two'
            assert await session.value("SHOW app.colour") == "it's = red"
            (row,) = await session.rows(
                "SELECT datconnlimit AS limit, has_database_privilege('somebody', $1,"
                " 'CREATE WITH GRANT OPTION') AS granted,"
                " has_database_privilege('somebody', $1, 'CONNECT') AS connects,"
                " (SELECT setconfig[1] FROM pg_db_role_setting JOIN pg_roles r ON r.oid = setrole"
                "   WHERE setdatabase = d.oid AND rolname = 'somebody') AS setting"
                " FROM pg_database d WHERE datname = $1",
                name,
            )
        assert row == {
            "limit": 17,
            "granted": True,
            "connects": False,
            "setting": "work_mem=7MB",
        }
    finally:
        await databases.drop(tools.gateway, name)
        await databases.drop(tools.gateway, generation.database, sealed=True)
        await tools.gateway.ddl("DROP ROLE somebody")
