"""A clone equals its template: all rows, and the schema as pg_dump writes it."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from clonepool.core.naming import Identity, Kind
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import make_clone
from clonepool.postgres.templates.psql import runner
from support.servers import BLOG, ROOT, SHARED_DATA

if TYPE_CHECKING:
    from pathlib import Path

    from support.servers import ServerTools

pytestmark = pytest.mark.anyio

PAGILA = SHARED_DATA / "pagila"


def dump(tools: ServerTools, database: str) -> str:
    """Return the whole database as text, rows and all; session keys differ at each run."""
    done = subprocess.run(
        [tools.psql.with_name("pg_dump"), database],
        env={**os.environ, **tools.gateway.endpoint.env(database)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    return "\n".join(
        line for line in lines if not line.startswith(("\\restrict", "\\unrestrict", "-- Dumped"))
    )


def write_pagila(directory: Path, major: int, *, vector: bool) -> None:
    """Write pagila's schema as this server understands it: what it lacks is put simpler."""
    text = (PAGILA / "pagila-schema.sql").read_text()
    if major < 18:
        text = text.replace("uuidv7()", "gen_random_uuid()").replace(" VIRTUAL", " STORED")
    if major < 17:
        text = text.replace("SET transaction_timeout = 0;", "")
    if not vector:
        text = re.sub(r"(CREATE|COMMENT ON) EXTENSION (IF NOT EXISTS )?vector [^;]*;", "", text)
        text = re.sub(r"CREATE INDEX [^;]* USING hnsw [^;]*;", "", text)
        text = text.replace("public.vector(20)", "real[]")
    (directory / "1.sql").write_text(text)


@pytest.mark.parametrize(
    "template",
    [
        "blog",
        pytest.param(
            "pagila",
            marks=pytest.mark.skipif(not PAGILA.exists(), reason="shared data is not here"),
        ),
    ],
)
async def test_a_clone_equals_what_the_files_make(
    any_tools: ServerTools, template: str, place: Path
) -> None:
    sql, directory = (BLOG, ROOT) if template == "blog" else (["*.sql"], place)
    if template == "pagila":
        async with any_tools.gateway.control() as session:
            vector = await session.value(
                "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
            )
        write_pagila(place, any_tools.capabilities.major, vector=bool(vector))
    tools = any_tools
    generation = await tools.build(sql, directory, template)
    clone = tools.namer.name(Identity(Kind.CLONE, template, generation.short, 1))
    await databases.create(tools.gateway, "by_hand", "template0", "", 30)
    try:
        for file in sorted(f for pattern in sql for f in directory.glob(pattern)):
            await runner.run_file(tools.psql, tools.gateway.endpoint, "by_hand", file, seconds=60)
        await make_clone(
            tools.gateway,
            clone,
            generation.database,
            generation.contents,
            options="",
            facts={},
            seconds=30,
        )
        expected = dump(tools, "by_hand")
        assert "CREATE TABLE" in expected
        assert dump(tools, clone) == expected.replace("by_hand", clone)
    finally:
        await databases.drop(tools.gateway, clone)
        await databases.drop(tools.gateway, "by_hand")
