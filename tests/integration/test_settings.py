"""A clone has the settings of its template, in whatever syntax they were set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from clonepool.core.naming import Identity, Kind
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import make_clone
from support.servers import open_directory

if TYPE_CHECKING:
    from support.servers import ServerTools

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("statement_timeout", "60000", "60000"),
        ("work_mem", "'4096kB'", "4096"),
        ("enable_seqscan", "no", "off"),
        ("DateStyle", "German, DMY", "German, DMY"),
        ("TimeZone", "'utc'", "UTC"),
        ("default_transaction_isolation", "'REPEATABLE READ'", "repeatable read"),
        ("default_transaction_read_only", "on", "on"),
    ],
)
async def test_a_clone_has_the_setting_of_its_template(
    tools: ServerTools, name: str, written: str, meant: str
) -> None:
    with open_directory() as directory:
        (directory / "set.sql").write_text(
            f"DO $$ BEGIN EXECUTE format($f$ALTER DATABASE %I SET {name} = {written}$f$,"
            " current_database()); END $$;\n"
        )
        generation = await tools.build(["set.sql"], directory, "settings")
    serial = tools.serials.next()
    clone = tools.namer.name(Identity(Kind.CLONE, "settings", generation.short, serial))
    try:
        await make_clone(
            tools.gateway, clone, generation.database, generation.contents,
            options="", facts={}, seconds=30,
        )  # fmt: skip
        connection = await asyncpg.connect(tools.gateway.endpoint.asyncpg_url(clone))
        begun_with = "SELECT reset_val FROM pg_settings WHERE name = $1"
        assert (await connection.fetchval(begun_with, name)).lower() == meant.lower()
        await connection.close()
    finally:
        await databases.drop(tools.gateway, clone)
        await databases.drop(tools.gateway, generation.database, sealed=True)
