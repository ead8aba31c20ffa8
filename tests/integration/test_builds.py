"""Builds of templates from every kind of source, and every way in which one fails."""

from __future__ import annotations

import secrets
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import pytest

from clonepool.config import CommandSection, DatabaseSection, DumpSection, TemplateSection
from clonepool.core.naming import Identity, Kind
from clonepool.errors import TemplateFailedError
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.gateway import OWN_NAMES
from clonepool.postgres.roles import Ownership, Rights
from clonepool.postgres.templates import builder as building
from clonepool.postgres.templates.build_steps import Steps
from support.servers import SHARED_DATA, ServerTools, role_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint
    from clonepool.postgres.templates.recipe import Generation

pytestmark = pytest.mark.anyio
CHINOOK = SHARED_DATA / "chinook" / "Chinook_PostgreSql.sql"
PAGILA = SHARED_DATA / "pagila" / "pagila-schema.sql"
needs_data = pytest.mark.skipif(not CHINOOK.exists(), reason="the schemas to try are not here")
SHOP = """\
CREATE ROLE shop_owner; CREATE ROLE "Shop Reader";
CREATE TABLE item (id int PRIMARY KEY, name text);
INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 50) n;
ALTER TABLE item OWNER TO shop_owner;
GRANT SELECT ON item TO "Shop Reader";
"""
USES = {
    "pg_trgm": "SELECT similarity('abc', 'abc')::int",
    "vector": "SELECT ('[1, 2]'::vector <-> '[1, 3]'::vector)::int",
}
EMBEDDED_MAJOR = 18
"""The server that has both."""
OWNER = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'item'"


@pytest.fixture
async def tools(tools: ServerTools) -> AsyncIterator[ServerTools]:
    """Return the tools, and leave no generation and no role on its server."""
    yield tools
    await clear(tools)


async def clear(tools: ServerTools) -> None:
    found, _ = await databases.list_ours(tools.gateway, tools.namer)
    for database in found:
        await databases.drop(tools.gateway, database.name, sealed=True)
    for role in ("shop_owner", '"Shop Reader"', "builder"):
        await tools.gateway.ddl(f"DROP ROLE IF EXISTS {role}")


async def ask(tools: ServerTools, generation: Generation, query: str) -> Any:
    """Ask a clone of the generation, made as any other."""
    name = tools.namer.name(Identity(Kind.CLONE, "asked", generation.short, 1))
    await make_clone(
        tools.gateway, name, generation.database, generation.contents,
        options="", facts={}, seconds=30,
    )  # fmt: skip
    try:
        async with tools.gateway.session(name, OWN_NAMES) as session:
            return await session.value(query)
    finally:
        await databases.drop(tools.gateway, name)


async def nothing_is_left(tools: ServerTools) -> bool:
    found, _ = await databases.list_ours(tools.gateway, tools.namer)
    return not found


async def fill(tools: ServerTools, name: str, script: str = SHOP) -> None:
    """Make a database that is not ours."""
    await databases.create(tools.gateway, name, "template0", "", 30)
    async with tools.gateway.session(name, OWN_NAMES) as session:
        await session.execute(script)


def dump(tools: ServerTools, database: str, to: Path, how: str) -> DumpSection:
    endpoint = tools.gateway.endpoint
    subprocess.run(
        [tools.psql.with_name("pg_dump"), f"--format={how}", f"--file={to}", database],
        check=True,
        env=endpoint.env(database),
    )
    return DumpSection(to.name)


@pytest.mark.parametrize("how", ["custom", "directory", "tar", "plain"])
async def test_a_dump_of_any_format_is_restored_for_the_templates_role(
    any_tools: ServerTools, place: Path, how: str
) -> None:
    tools = any_tools
    try:
        await fill(tools, "shop")
        section = dump(tools, "shop", place / "shop.dump", how)
        made = await tools.make(TemplateSection(dump=section), place, "dumped")
        assert await ask(tools, made, "SELECT count(*) FROM item") == 50
        assert await ask(tools, made, OWNER) == tools.gateway.endpoint.user
        again = await tools.make(TemplateSection(dump=section), place, "dumped")
        assert (again.reused, again.database) == (True, made.database)
    finally:
        await databases.drop(tools.gateway, "shop")
        await clear(tools)


@pytest.mark.parametrize("how", ["custom", "plain"])
async def test_roles_of_a_dump_are_created_or_must_be_there(
    tools: ServerTools, place: Path, how: str
) -> None:
    await fill(tools, "shop")
    name = dump(tools, "shop", place / "shop.dump", how).file
    await databases.drop(tools.gateway, "shop")
    await clear(tools)
    keeping = TemplateSection(dump=DumpSection(name, roles="keep"))
    with pytest.raises(TemplateFailedError, match=r'role "[^"]+" does not exist'):
        await tools.make(keeping, place)
    assert await nothing_is_left(tools)
    creating = TemplateSection(dump=DumpSection(name, roles="create"))
    made = await tools.make(creating, place)
    assert await ask(tools, made, OWNER) == "shop_owner"
    reads = "SELECT has_table_privilege('Shop Reader', 'item', 'SELECT')"
    assert await ask(tools, made, reads) is True


async def test_what_is_no_dump_is_said_so(tools: ServerTools, place: Path) -> None:
    (place / "empty").mkdir()
    for file, said in {"absent": "No such file", "empty": "without toc.dat"}.items():
        with pytest.raises(TemplateFailedError, match=said):
            await tools.make(TemplateSection(dump=file), place)
    (place / "broken").write_bytes(b"PGDMP and then nothing")
    with pytest.raises(TemplateFailedError, match="broken"):
        await tools.make(TemplateSection(dump="broken"), place)
    assert await nothing_is_left(tools)


@needs_data
async def test_a_schema_as_pg_dump_writes_it_needs_none_of_its_roles(
    tools: ServerTools, place: Path
) -> None:
    made = await tools.make(TemplateSection(dump=str(PAGILA)), place)
    assert made.contents.relations > 300
    tables = "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND oid > 16383"
    assert await ask(tools, made, tables) > 20


@needs_data
async def test_a_file_that_leaves_the_database_is_named_with_its_line(
    tools: ServerTools, place: Path
) -> None:
    with pytest.raises(TemplateFailedError, match=r"Chinook_PostgreSql\.sql:19: DROP DATABASE"):
        await tools.make(TemplateSection(sql=[str(CHINOOK)]), place)
    assert await nothing_is_left(tools)
    async with tools.gateway.control() as session:
        there = await session.value("SELECT count(*) FROM pg_database WHERE datname = 'chinook'")
    assert there == 0


@needs_data
async def test_without_those_lines_it_is_a_template_like_any_other(
    tools: ServerTools, place: Path
) -> None:
    kept = [
        line
        for line in CHINOOK.read_text(encoding="utf-8").splitlines()
        if not line.startswith(("DROP DATABASE", "CREATE DATABASE", "\\c "))
    ]
    (place / "chinook.sql").write_text("\n".join(kept), encoding="utf-8")
    made = await tools.make(TemplateSection(sql=["chinook.sql"]), place)
    assert await ask(tools, made, "SELECT count(*) FROM track") == 3503


async def test_a_command_fills_the_template_by_arguments_or_by_the_shell(
    tools: ServerTools, place: Path
) -> None:
    (place / "tool").mkdir()
    script = 'import os, subprocess; subprocess.run(["psql", "-qc", os.environ["SQL"]], check=True)'
    path = f"{tools.psql.parent}:/usr/bin:/bin"
    by_arguments = CommandSection(
        [sys.executable, "-c", script], env={"SQL": "CREATE TABLE made (a int)", "PATH": path}
    )
    made = await tools.make(TemplateSection(command=by_arguments), place, "one")
    assert await ask(tools, made, "SELECT count(*) FROM made") == 0
    by_shell = CommandSection(
        f'{tools.psql} -q "$APP_DB" -c "CREATE TABLE made AS SELECT \'$(basename "$PWD")\' AS v"',
        directory="tool",
        variable="APP_DB",
    )
    made = await tools.make(TemplateSection(command=by_shell), place, "two")
    assert await ask(tools, made, "SELECT v FROM made") == "tool"


async def test_a_command_that_fails_or_hangs_says_how_and_leaves_nothing(
    tools: ServerTools, place: Path
) -> None:
    with pytest.raises(TemplateFailedError, match=r"exit code 3; its last output: out\nerr"):
        await tools.make(TemplateSection(command="echo out; echo err >&2; exit 3"), place)
    with pytest.raises(TemplateFailedError, match="cannot be started"):
        await tools.make(TemplateSection(command=["./absent"]), place)
    began = anyio.current_time()
    hanging = TemplateSection(command="echo begun; sleep 60 & sleep 60", build_timeout=1.0)
    with pytest.raises(TemplateFailedError, match="took longer than 1 s"):
        await tools.make(hanging, place)
    assert anyio.current_time() - began < 10
    assert await nothing_is_left(tools)


async def test_only_watched_files_decide_whether_a_command_runs_again(
    tools: ServerTools, place: Path
) -> None:
    (place / "watched.txt").write_text("1")
    run = f"echo ran >> {place}/log"
    section = TemplateSection(command=CommandSection(run, watch=["*.txt"]))
    await tools.make(section, place)
    (place / "other.md").write_text("1")
    assert (await tools.make(section, place)).reused
    (place / "watched.txt").write_text("2")
    assert not (await tools.make(section, place)).reused
    assert not (await tools.make(section, place, anew=True)).reused
    assert (place / "log").read_text().count("ran") == 3


async def test_what_changes_while_it_is_built_is_built_again(
    tools: ServerTools, place: Path
) -> None:
    (place / "state").write_text("0")
    once = f"test -e {place}/done || {{ touch {place}/done; echo 1 > {place}/state; }}"
    section = TemplateSection(command=CommandSection(once, watch=["state"]))
    made = await tools.make(section, place)
    assert made.inputs == (await tools.make(section, place)).inputs
    always = f"date +%N > {place}/state"
    with pytest.raises(TemplateFailedError, match="changed during each of 3 builds"):
        await tools.make(TemplateSection(command=CommandSection(always, watch=["state"])), place)


async def test_a_database_of_the_same_server_is_copied_with_all_that_belongs_to_it(
    tools: ServerTools, place: Path
) -> None:
    await fill(tools, "existing")
    await tools.gateway.ddl("ALTER DATABASE existing SET search_path = somewhere, public")
    section = TemplateSection(database="existing", build_timeout=3.0)
    try:
        async with tools.gateway.session("existing", OWN_NAMES) as session:
            with pytest.raises(TemplateFailedError, match=r"accessed by other users|longer than"):
                await tools.make(section, place)
            ending = DatabaseSection("existing", end_sessions=True)
            made = await tools.make(TemplateSection(database=ending), place)
            assert not session.usable or await session_ended(session)
        assert await ask(tools, made, "SELECT count(*) FROM item") == 50
        assert await ask(tools, made, "SHOW search_path") == "somewhere, public"
        async with tools.gateway.session("existing", OWN_NAMES) as session:
            await session.execute("DELETE FROM item")
        assert (await tools.make(TemplateSection(database=ending), place)).reused  # copied once
        anew = await tools.make(TemplateSection(database=ending), place, anew=True)
        assert await ask(tools, anew, "SELECT count(*) FROM item") == 0
    finally:
        await databases.drop(tools.gateway, "existing")
    with pytest.raises(TemplateFailedError, match="no database existing"):
        await tools.make(section, place)


async def session_ended(session: Any) -> bool:
    try:
        await session.value("SELECT 1")
    except Exception:  # noqa: BLE001 - however it ended
        return True
    return False


async def outsider(tools: ServerTools) -> Endpoint:
    """Return the endpoint for a role with a password."""
    await tools.gateway.ddl("DROP ROLE IF EXISTS outsider")
    await tools.gateway.ddl("CREATE ROLE outsider LOGIN SUPERUSER PASSWORD 'un-guessable'")
    return msgspec.structs.replace(
        role_of(tools.gateway.endpoint, "outsider"), password="un-guessable"
    )


async def test_a_database_of_another_server_is_dumped_and_restored(
    tools: ServerTools, place: Path
) -> None:
    await fill(tools, "elsewhere")
    endpoint = await outsider(tools)
    try:
        made = await tools.make(TemplateSection(database=endpoint.url("elsewhere")), place)
        assert await ask(tools, made, "SELECT count(*) FROM item") == 50
        assert endpoint.password not in str(made.inputs)
    finally:
        await databases.drop(tools.gateway, "elsewhere")
    absent = endpoint.url("absent")
    with pytest.raises(TemplateFailedError, match="does not exist"):
        await tools.make(TemplateSection(database=absent), place)


@pytest.mark.parametrize("where", ["authority", "query"])
async def test_no_program_has_a_password_among_its_arguments(
    tools: ServerTools, place: Path, where: str
) -> None:
    """Every user of the machine can read them in /proc."""
    for program in ("psql", "pg_restore"):
        (place / program).symlink_to(tools.psql.with_name(program))
    (place / "pg_dump").write_text(
        f"#!/bin/sh\ntr '\\0' '\\n' < /proc/$$/cmdline > {place}/seen\n"
        f'exec {tools.psql.with_name("pg_dump")} "$@"\n'
    )
    (place / "pg_dump").chmod(0o755)
    endpoint = await outsider(tools)
    password = endpoint.password
    await fill(tools, "elsewhere")
    try:
        url = endpoint.url("elsewhere")
        if where == "query":
            url = url.replace(f":{password}@", "@") + f"&password={password}&sslpassword=hidden"
        section = TemplateSection(database=url)
        tools.builder.steps = Steps(
            tools.gateway, tools.roles, tools.gateway.endpoint, place / "psql"
        )
        made = await tools.make(section, place)
        assert await ask(tools, made, "SELECT count(*) FROM item") == 50
    finally:
        await databases.drop(tools.gateway, "elsewhere")
    seen = (place / "seen").read_text()
    assert "elsewhere" in seen
    assert password not in seen
    assert "hidden" not in seen
    assert password not in str(made.inputs)


async def test_a_password_that_a_command_prints_is_not_shown(
    tools: ServerTools, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says reaches every client, and what it is called the database's comment."""
    section = TemplateSection(command='echo "no $DATABASE_URL"; echo "$PGPASSWORD"; exit 1')
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: "un-guessable")
    with pytest.raises(TemplateFailedError) as caught:
        await tools.make(section, place, ownership=Ownership("builder", Rights.OWNER))
    assert "un-guessable" not in caught.value.sentence()
    assert "no postgresql://" in caught.value.sentence()
    url = "postgresql://me:its%20secret@h/db"
    line = f"TOKEN=deadbeef true {url} --password deadbeef"
    made = await tools.make(TemplateSection(command=line), place)
    failing = TemplateSection(command=["false", url, "--password=deadbeef"])
    with pytest.raises(TemplateFailedError) as caught:
        await tools.make(failing, place)
    found, _ = await databases.list_ours(tools.gateway, tools.namer)
    comments = [str(database.comment) for database in found]
    for text in (str(made.inputs), caught.value.sentence(), *comments):
        assert "secret" not in text
        assert "deadbeef" not in text
    assert any("fingerprint" in comment for comment in comments)


@pytest.mark.parametrize("password", ["p@ss/w0rt", "p#w0rt", "p/w0rt@", "p?w0rt"])
async def test_a_url_that_cannot_be_read_is_not_repeated(
    tools: ServerTools, place: Path, password: str
) -> None:
    url = f"postgresql://me:{password}@h/db"
    with pytest.raises(TemplateFailedError, match="cannot be read") as caught:
        await tools.make(TemplateSection(database=url), place)
    assert "percent-encoded" in caught.value.remedy
    assert "w0rt" not in caught.value.sentence()


async def test_a_template_extends_another_and_is_built_again_when_that_is(
    tools: ServerTools, place: Path
) -> None:
    (place / "1.sql").write_text(
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1);"
        " DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET app.x = 1', current_database()); END $$"
    )
    (place / "2.sql").write_text("INSERT INTO t VALUES (2);")
    lower = await tools.make(TemplateSection(sql=["1.sql"]), place, "lower")
    section = TemplateSection(extends="lower", sql=["2.sql"])
    upper = await tools.make(section, place, "upper", lower=lower)
    assert await ask(tools, upper, "SELECT sum(a)::int FROM t") == 3
    assert await ask(tools, upper, "SHOW app.x") == "1"
    (place / "2.sql").write_text("INSERT INTO t VALUES (5);")
    assert (await tools.make(TemplateSection(sql=["1.sql"]), place, "lower")).reused
    (place / "1.sql").write_text("CREATE TABLE t (a int);")
    lower = await tools.make(TemplateSection(sql=["1.sql"]), place, "lower")
    upper = await tools.make(section, place, "upper", lower=lower)
    assert await ask(tools, upper, "SELECT sum(a)::int FROM t") == 5


async def test_owner_extension_settings_and_locale_reach_every_clone(
    any_tools: ServerTools, place: Path
) -> None:
    tools = any_tools
    (place / "a.sql").write_text("CREATE SCHEMA app; CREATE TABLE app.t (a text);")
    try:
        async with tools.gateway.control() as session:
            there = await session.rows(
                "SELECT name::text FROM pg_available_extensions WHERE name = ANY ($1::name[])",
                list(USES),
            )
        extensions = [row["name"] for row in there]
        section = TemplateSection(
            sql=["a.sql"],
            extensions=extensions,
            settings={"search_path": "app, public", "app.answer": "42"},
            encoding="UTF8",
            locale="C.UTF-8",
        )
        made = await tools.make(section, place, ownership=Ownership("builder", Rights.OWNER))
        assert await ask(tools, made, "SHOW search_path") == "app, public"
        assert await ask(tools, made, "SHOW app.answer") == "42"
        owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 't'"
        assert await ask(tools, made, owner) == "builder"
        collation = "SELECT datcollate FROM pg_database WHERE datname = current_database()"
        assert await ask(tools, made, collation) == "C.UTF-8"
        for extension in extensions:
            assert await ask(tools, made, USES[extension]) == 1
        if tools.capabilities.major == EMBEDDED_MAJOR:
            assert set(extensions) == set(USES)
    finally:
        await clear(tools)


async def test_an_extension_that_is_not_there_is_named(tools: ServerTools, place: Path) -> None:
    (place / "a.sql").write_text("")
    with pytest.raises(TemplateFailedError, match="does not have absent_one"):
        await tools.make(TemplateSection(sql=["*"], extensions=["absent_one"]), place)


async def test_two_builders_of_one_generation_build_it_once(
    tools: ServerTools, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "a.sql").write_text("SELECT pg_sleep(0.3); CREATE TABLE t (a int);")
    other = ServerTools(tools.gateway.endpoint, tools.psql, tools.capabilities, "test")
    monkeypatch.setattr(building, "MOST_TRIES", 1)
    made = []

    async def build(one: ServerTools) -> None:
        made.append(await one.build(["a.sql"], place, "raced"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(build, tools)
        tasks.start_soon(build, other)
    await other.gateway.close()
    assert sorted(each.reused for each in made) == [False, True]
