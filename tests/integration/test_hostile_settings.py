"""The settings of a template's database do not affect the daemon's own sessions."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from clonepool.config import TemplateSection
from clonepool.core.naming import Identity, Kind
from clonepool.postgres import databases
from clonepool.postgres.clones.copy_strategy import CopyOptions
from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.quoting import literal
from clonepool.postgres.templates.client_generation import ClientGenerations, Source
from clonepool.postgres.templates.recipe import Inputs, Recipe
from support.rewinding import open_harness
from support.servers import ServerTools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from clonepool.postgres.embedded.server import EmbeddedServer
    from clonepool.postgres.templates.recipe import Generation

pytestmark = pytest.mark.anyio
SETTINGS = {
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "role": "settled_weak",
    "search_path": "trap, public",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "1ms",
    "session_replication_role": "replica",
    "row_security": "off",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmloption": "document",
    "standard_conforming_strings": "off",
    "escape_string_warning": "on",
    "backslash_quote": "on",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug5",
    "exit_on_error": "on",
    "default_tablespace": "pg_global",
    "temp_tablespaces": "pg_default",
    "default_table_access_method": "heap",
    "default_toast_compression": "pglz",
    "synchronous_commit": "off",
    "vacuum_cost_delay": "100",
    "vacuum_freeze_min_age": "1000000",
    "check_function_bodies": "on",
    "jit": "on",
    "debug_print_plan": "on",
}
FROM_17 = {"transaction_timeout": "1ms"}
UNREACHABLE = {
    "local_preload_libraries": "nothing_of_this_name",
    "session_preload_libraries": "nothing_of_this_name",
}
"""Settings that refuse every session that does not override them."""
SCHEMA = """\
CREATE SCHEMA trap;
CREATE FUNCTION trap.count(text) RETURNS bigint LANGUAGE sql AS 'SELECT 1/0::bigint';
CREATE TABLE public.item (id int PRIMARY KEY, said text, at timestamptz, raw bytea, f float8,
    i interval);
INSERT INTO public.item SELECT n, 'it''s \\ ' || n, now(), '\\x00ff', n / 3.0, '1 day'
    FROM generate_series(1, 200) n;
ALTER TABLE public.item ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.item FORCE ROW LEVEL SECURITY;
"""
LOGIN_TRIGGER = """\
CREATE FUNCTION trap.login() RETURNS event_trigger LANGUAGE plpgsql AS
    'BEGIN RAISE EXCEPTION ''nobody comes in''; END';
CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION trap.login();
ALTER EVENT TRIGGER at_login ENABLE ALWAYS;
"""
LEASE = """\
DELETE FROM public.item WHERE id % 7 = 0;
UPDATE public.item SET said = 'other' WHERE id % 11 = 0;
"""


def given(settings: Mapping[str, str], more: str = "") -> str:
    """Return a script that gives its database these settings at its end."""
    lines = [
        f"EXECUTE format('ALTER DATABASE %I SET {name} = %s', current_database(),"
        f" {literal(literal(value) if name != 'search_path' else value)});"
        for name, value in settings.items()
    ]
    return f"{SCHEMA}{more}DO $do$ BEGIN\n" + "\n".join(lines) + "\nEND $do$;\n"


def script(tools: ServerTools) -> str:
    """Return the one for what this version knows."""
    late = tools.capabilities.major >= 17
    return given(SETTINGS | FROM_17, LOGIN_TRIGGER) if late else given(SETTINGS)


@pytest.fixture
async def tools(any_tools: ServerTools) -> AsyncIterator[ServerTools]:
    async with weak_role(any_tools):
        yield any_tools


@asynccontextmanager
async def weak_role(tools: ServerTools) -> AsyncIterator[None]:
    await tools.gateway.ddl("CREATE ROLE settled_weak")
    try:
        yield
    finally:
        found, _ = await databases.list_ours(tools.gateway, tools.namer)
        for database in found:
            await databases.drop(tools.gateway, database.name, sealed=True)
        await tools.gateway.ddl("DROP ROLE settled_weak")


async def clone(tools: ServerTools, made: Generation, serial: int) -> str:
    name = tools.namer.name(Identity(Kind.CLONE, "made", made.short, serial))
    await make_clone(
        tools.gateway, name, made.database, made.contents, options="", facts={}, seconds=30
    )
    return name


async def snapshot(tools: ServerTools, name: str, place: Path) -> Generation:
    handmade = ClientGenerations(
        tools.gateway, tools.capabilities, tools.builder.generations, tools.builder.steps,
        tools.serials.next,
    )  # fmt: skip
    recipe = Recipe("snapped", TemplateSection(), place, rewindable=True)
    source = Source(name, 0, CopyOptions("", {}), end_sessions=True)
    await handmade.leave_alone(source)
    copy = await handmade.copy(source, recipe, "snapshot")
    return await handmade.finish(copy, recipe, "snapshot", Inputs([], [], {}), {}, filled=False)


async def test_a_database_with_any_settings_is_built_cloned_and_copied(
    tools: ServerTools, place: Path
) -> None:
    (place / "a.sql").write_text(script(tools))
    made = await tools.build(["a.sql"], place, "made", rewindable=True)
    name = await clone(tools, made, 1)
    again = await snapshot(tools, name, place)
    assert again.contents.relations == made.contents.relations
    await clone(tools, again, 2)


async def test_a_template_whose_settings_refuse_sessions_is_too(
    tools: ServerTools, place: Path
) -> None:
    (place / "a.sql").write_text(given(UNREACHABLE))
    made = await tools.build(["a.sql"], place, "made", rewindable=True)
    name = await clone(tools, made, 1)
    await clone(tools, await snapshot(tools, name, place), 2)


async def test_its_clones_are_rewound_and_proven(any_server: EmbeddedServer) -> None:
    tools = await ServerTools.open(any_server.endpoint, any_server.psql, "settled")
    try:
        async with (
            weak_role(tools),
            open_harness(any_server, given(SETTINGS), looks=False) as harness,
        ):
            for _ in range(3):
                async with tools.gateway.session(harness.clone) as session:
                    await session.execute(LEASE)
                assert await harness.recycle(verify_every=1), harness.why
    finally:
        await tools.gateway.close()


async def test_what_extends_it_is_built_with_time_enough_and_may_write(
    tools: ServerTools, place: Path
) -> None:
    usual = {
        name: value
        for name, value in SETTINGS.items()
        if name.endswith("_timeout") or name.startswith("default_transaction")
    }
    late = FROM_17 if tools.capabilities.major >= 17 else {}
    (place / "a.sql").write_text(given(usual | late))
    (place / "b.sql").write_text(
        "SELECT pg_sleep(0.1); BEGIN; SELECT pg_sleep(0.1); CREATE TABLE public.more (); COMMIT;"
    )
    lower = await tools.build(["a.sql"], place, "lower")
    section = TemplateSection(extends="lower", sql=["b.sql"], settings={"work_mem": "8MB"})
    upper = await tools.make(section, place, "upper", lower=lower)
    assert upper.contents.relations > lower.contents.relations
