"""What is predicted about a script is what psql does, on each version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from clonepool.config import TemplateSection
from clonepool.core.naming import Identity, Kind
from clonepool.errors import TemplateFailedError
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.gateway import OWN_NAMES
from clonepool.postgres.templates.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from clonepool.postgres.templates.recipe import Generation
    from support.servers import ServerTools

pytestmark = pytest.mark.anyio
SECTION = TemplateSection(sql=["schema.sql", "main.sql"])
SCHEMA = "CREATE TABLE t (a text);\n"
FORMS = [
    r"\i part.sql",
    r"\i 'pa\x72t.sql' \\ SELECT 1;",
    r"\i part.sql; -- a comment is a further argument",
    r"\include_relative 'part.sql'",
    r"SELECT 1 \i part.sql \\ ;",
    r"\echo one \i part.sql",
    "\\set f part.sql\n\\i :f",
    "\\set name rt\n\\set f pa :name .sql\n\\ir :f",
    "\\set m '\\\\i part.sql'\n:m",
    "\\cd ..\n\\cd main\n\\i part.sql",
    "\\set f part.sql\nSELECT 'x' AS g \\gset\n\\i :f",
    "\\if no\n\\i absent.sql\n\\elif :{?env}\n\\i absent.sql\n\\elif 1\n\\i part.sql\n\\endif",
    "COPY t FROM stdin;\n\\i absent.sql\n\\.\n\\i part.sql",
    "COPY t FROM stdin \\g\n'\n\\.\n\\i part.sql",
    "\\copy t from stdin\n'\n\\.\n\\i part.sql",
    "CREATE FUNCTION a$a$() RETURNS int LANGUAGE sql AS $a$ SELECT 1 -- \\i x $a$; \\i part.sql",
    "/* /* nested */ \\i absent.sql */ \\i part.sql",
    "SET standard_conforming_strings = off;\nSELECT 'it\\'s';\n\\i part.sql",
    "SELECT E'it\\'s'\n  'x'; \\i part.sql",
    "\ufeff\\i part.sql\r\nSELECT 1;\r\n",
    "\\if :{?again}\n\\i part.sql\n\\else\n\\set again 1\n\\i main.sql\n\\endif",
    r"\copy t from part.csv",
    r"\copy t (a) from 'part.csv' csv",
    "\\set f {place}/part.csv\nCOPY t FROM :'f';",
    "INSERT INTO t SELECT pg_read_file('{place}/part.csv');",
    "DO $$ BEGIN COPY t FROM '{place}/part.csv'; END $$;",
]
OPEN = {
    "begin": "BEGIN; INSERT INTO t VALUES ('lost');",
    "a failed block": "\\set ON_ERROR_STOP off\nBEGIN; SELECT 1/0; INSERT INTO t VALUES ('lost');",
    "autocommit off": "\\set AUTOCOMMIT off\nINSERT INTO t VALUES ('lost');",
    "in the midst": "BEGIN; INSERT INTO t VALUES ('lost');\n\\q\nCOMMIT;",
    "included": "\\i begin.inc",
    "quietly": "\\set VERBOSITY terse\n\\o /dev/null\nBEGIN; INSERT INTO t VALUES ('lost');",
    "a savepoint": "BEGIN; SAVEPOINT a; INSERT INTO t VALUES ('lost'); RELEASE a;",
}
ENDED = [
    "BEGIN; COMMIT;",
    "BEGIN; INSERT INTO t VALUES ('lost'); ROLLBACK;",
    "\\set AUTOCOMMIT off\nINSERT INTO t VALUES ('kept');\nCOMMIT;",
    "SET default_transaction_read_only = on;",
    "CREATE ROLE nobody_much; SET SESSION AUTHORIZATION nobody_much;",
    "SELECT 1 -- and no semicolon",
    "\\q",
    "",
]


@pytest.fixture
async def tools(any_tools: ServerTools) -> AsyncIterator[ServerTools]:
    """Return the tools, and leave no generation and no role on its server."""
    yield any_tools
    found, _ = await databases.list_ours(any_tools.gateway, any_tools.namer)
    for database in found:
        await databases.drop(any_tools.gateway, database.name, sealed=True)
    await any_tools.gateway.ddl("DROP ROLE IF EXISTS nobody_much")


@pytest.fixture
def main(place: Path) -> Path:
    (place / "main").mkdir(mode=0o755)
    return place / "main"


def write(main: Path, text: str, value: str) -> None:
    text = text.replace("{place}", str(main))
    (main / "main.sql").write_text(text, newline="")
    (main / "schema.sql").write_text(SCHEMA)
    (main / "begin.inc").write_text("BEGIN; INSERT INTO t VALUES ('lost');")
    (main / "part.sql").write_text(f"INSERT INTO t VALUES ('{value}');")
    (main / "part.csv").write_text(f"{value}\n")
    (main / "part.csv").chmod(0o644)


async def make(tools: ServerTools, main: Path) -> Generation:
    return await tools.make(SECTION, main)


async def holds(tools: ServerTools, generation: Generation) -> list[Any]:
    name = tools.namer.name(Identity(Kind.CLONE, "asked", generation.short, 1))
    await make_clone(
        tools.gateway, name, generation.database, generation.contents,
        options="", facts={}, seconds=30,
    )  # fmt: skip
    try:
        async with tools.gateway.session(name, OWN_NAMES) as session:
            return [row["a"].strip() for row in await session.rows("SELECT a FROM public.t")]
    finally:
        await databases.drop(tools.gateway, name)


@pytest.mark.long
async def test_a_change_of_what_psql_reads_makes_another_generation(
    tools: ServerTools, main: Path
) -> None:
    recipe = Recipe("made", SECTION, main)
    for text in FORMS:
        write(main, text, "before")
        made = await tools.make(SECTION, main)
        assert "before" in await holds(tools, made), text
        write(main, text, "after")
        assert (await tools.builder.inputs(recipe)).full != made.full, text
    made = await tools.make(SECTION, main)
    assert "after" in await holds(tools, made)


@pytest.mark.parametrize("how", OPEN)
async def test_a_file_that_ends_inside_a_transaction_fails_the_build(
    tools: ServerTools, main: Path, how: str
) -> None:
    write(main, OPEN[how], "")
    with pytest.raises(TemplateFailedError, match=r"main\.sql: it ends inside a transaction"):
        await make(tools, main)
    found, _ = await databases.list_ours(tools.gateway, tools.namer)
    assert [each.name for each in found if each.identity.template == "made"] == []


async def test_a_transaction_cannot_go_on_in_the_next_file(tools: ServerTools, main: Path) -> None:
    write(main, "COMMIT;", "")
    (main / "schema.sql").write_text(f"BEGIN; {SCHEMA}")
    with pytest.raises(TemplateFailedError, match=r"schema\.sql: it ends inside") as caught:
        await make(tools, main)
    assert "a psql of its own" in caught.value.remedy


async def test_statements_that_were_only_queued_fail_the_build(
    tools: ServerTools, main: Path
) -> None:
    if tools.capabilities.major < 18:
        pytest.skip("psql has no pipelines")
    write(main, "\\startpipeline\nINSERT INTO t VALUES ('lost') \\bind \\sendpipeline\n", "")
    with pytest.raises(TemplateFailedError, match=r"main\.sql: it ends inside"):
        await make(tools, main)
    write(
        main,
        "\\startpipeline\nINSERT INTO t VALUES ('kept') \\bind \\sendpipeline\n\\endpipeline\n",
        "",
    )
    assert await holds(tools, await make(tools, main)) == ["kept"]


async def test_a_file_that_ends_its_transactions_is_taken(tools: ServerTools, main: Path) -> None:
    for text in ENDED:
        write(main, text, "")
        kept = ["kept"] if "kept" in text else []
        assert await holds(tools, await make(tools, main)) == kept, text


async def test_a_branch_that_is_not_closed_fails_the_build(tools: ServerTools, main: Path) -> None:
    write(main, "\\if false\nINSERT INTO t VALUES ('lost');", "")
    with pytest.raises(TemplateFailedError, match=r"without finding closing .endif"):
        await make(tools, main)
    write(main, "\\set ON_ERROR_STOP off\n\\if false\nINSERT INTO t VALUES ('lost');", "")
    with pytest.raises(TemplateFailedError, match=r"without finding closing .endif"):
        await make(tools, main)


async def test_what_may_leave_a_part_out_is_told_with_the_generation(
    tools: ServerTools, main: Path
) -> None:
    write(main, "\\q\nINSERT INTO t VALUES ('lost');", "")
    made = await make(tools, main)
    assert await holds(tools, made) == []
    assert [str(main / "main.sql") in warning for warning in made.warnings] == [True]
    assert (await make(tools, main)).warnings == made.warnings
