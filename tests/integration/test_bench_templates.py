"""The templates of the benchmark can be built, and the changes of its leases rewound."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from bench import work
from bench.real_schema import real_schema

from support.rewinding import RewindHarness, open_harness

if TYPE_CHECKING:
    from clonepool.postgres.embedded.server import EmbeddedServer

pytestmark = pytest.mark.anyio
STRICT = "\\set ON_ERROR_STOP on\n"
OWN_TABLES = "FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind"


def say(bench: RewindHarness, sql: str) -> str:
    done = subprocess.run(
        [bench.server.psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align",
         "--no-password", "--set=ON_ERROR_STOP=1", f"--command={sql}"],
        text=True, capture_output=True, check=True, timeout=60,
        env={**os.environ, **bench.server.endpoint.env(bench.clone)},
    )  # fmt: skip
    return done.stdout


def ask(bench: RewindHarness, question: str) -> int:
    return int(say(bench, question))


async def test_a_real_schema_has_all_that_large_projects_have(server: EmbeddedServer) -> None:
    schema = real_schema()
    assert schema == real_schema()
    async with open_harness(server, STRICT + schema.sql) as bench:
        assert ask(bench, f"SELECT count(*) {OWN_TABLES} IN ('r', 'p')") == schema.tables > 400
        assert ask(bench, f"SELECT count(*) {OWN_TABLES} = 'v'") >= 10
        assert ask(bench, f"SELECT count(*) {OWN_TABLES} = 'i'") > 3 * schema.tables
        assert ask(bench, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") > 100
        assert ask(bench, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") > 400
        assert ask(bench, "SELECT count(*) FROM pg_index WHERE indpred IS NOT NULL") > 10
        assert ask(bench, "SELECT count(*) FROM pg_index WHERE indexprs IS NOT NULL") > 10
        for script in (schema.reads, schema.writes):
            assert await bench.lease(STRICT + script), bench.why
            assert await bench.look() == bench.pristine


async def test_rows_that_lie_anywhere_are_others_each_time(server: EmbeddedServer) -> None:
    rows = 20_000
    changed = "SELECT count(*) FROM big WHERE v = 'x'"
    async with open_harness(server, STRICT + work.big(rows), looks=False) as bench:
        found = set()
        for _ in range(2):
            say(bench, work.big_writes(rows, 500))
            assert 450 < ask(bench, changed) <= 500
            found.add(ask(bench, "SELECT sum(id) FROM big WHERE v = 'x'"))
            assert await bench.recycle(), bench.why
        assert len(found) == 2
