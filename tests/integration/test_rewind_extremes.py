"""Large and old databases: files beyond 1 GiB, transaction numbers near 2^32."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from clonepool.config import EmbeddedSection
from clonepool.postgres.embedded.cluster import MAINTENANCE
from clonepool.postgres.embedded.server import MARKER, EmbeddedServer, discard
from support import binaries
from support.integrity import problems
from support.rewinding import open_harness
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = """\
CREATE SCHEMA m;
CREATE TABLE m.small (id int PRIMARY KEY, v text);
INSERT INTO m.small SELECT n, 'v' FROM generate_series(1, 40) AS n;
CREATE TABLE m.large (id int PRIMARY KEY, v text);
INSERT INTO m.large SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, 6000) AS n;
"""
SCRIPTS = (
    "UPDATE m.small SET v = 'x' WHERE id < 9; UPDATE m.large SET v = 'x' WHERE id % 1000 = 7",
    "DELETE FROM m.small; DELETE FROM m.large WHERE id IN (7, 3000)",
    "INSERT INTO m.large VALUES (9001, 'other'), (9000, 'new')",
    "BEGIN; UPDATE m.large SET v = 'y' WHERE id < 90; ROLLBACK; DELETE FROM m.large WHERE id = 5",
    "SELECT FROM m.large WHERE id = 99 FOR UPDATE; TRUNCATE m.small",
    "VACUUM (FREEZE) m.small",
)
"""Those of large tables move rows, of which the next must know where they are."""
_BEYOND_2_31 = 2**31 + 2**20
_BEFORE_2_32 = 2**32 - 2**15
"""A page of the commit log before the end."""
AGES = {
    "beyond 2^31": [2**30, _BEYOND_2_31],
    "around 2^32": [2**30, _BEYOND_2_31, 3 * 2**30, _BEFORE_2_32],
}
"""By what is reached, the steps to it: each less than 2^31, and each a page of the commit log."""
LEFT = 600
"""Number of transactions before 2^32 at which a template is built."""
VERSIONS = [pytest.param(major, id=f"postgresql-{major}") for major in binaries.rewinding()]
GIB = 1024**3
WIDE = """\
CREATE SCHEMA m;
CREATE TABLE m.wide (id int PRIMARY KEY, v text);
ALTER TABLE m.wide ALTER v SET STORAGE PLAIN;
INSERT INTO m.wide SELECT n, repeat('clone', 1400) FROM generate_series(1, 138000) AS n;
"""
HAS_CONTRIB = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_visibility'"
COUNTED = "SELECT count(*), sum(id), sum(length(v)) FROM m.wide"


def burn(server: EmbeddedServer, transactions: int) -> None:
    """Use up transaction numbers."""
    say(
        server,
        f"DO $$ BEGIN FOR i IN 1..{transactions} LOOP"
        " PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    )


def say(server: EmbeddedServer, *statements: str, database: str = "postgres") -> str:
    """Have psql run these, each in a transaction of its own."""
    done = subprocess.run(
        [server.psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password",
         "--set=ON_ERROR_STOP=1", *(f"--command={sql}" for sql in statements)],
        text=True, capture_output=True, check=True, timeout=60,
        env={**os.environ, **server.endpoint.env(database)},
    )  # fmt: skip
    return done.stdout.strip()


def advance(server: EmbeddedServer, state: Path, binary: Path, number: int) -> None:
    """Let the next transaction have this number, and nothing be older than it."""
    anyio.run(server.stop)
    data = Path(json.loads((state / MARKER).read_text())["root"]) / "data"
    owner = data.stat()
    subprocess.run(
        [binary / "pg_resetwal", "--pgdata", data, "-x", str(number)],
        check=True, user=owner.st_uid, group=owner.st_gid, cwd="/",
    )  # fmt: skip
    anyio.run(server.start)
    say(server, "ALTER DATABASE template0 ALLOW_CONNECTIONS true")
    for database in ("postgres", "template1", "template0", MAINTENANCE):
        say(server, "VACUUM (FREEZE)", database=database)


@contextmanager
def old_server(major: int, steps: list[int]) -> Iterator[EmbeddedServer]:
    """Run a server that has seen that many transactions."""
    binary = binaries.available()[major]
    with open_directory() as state:
        server = EmbeddedServer(EmbeddedSection(binaries=str(binary)), state, 16)
        try:
            anyio.run(server.start)
            if say(server, HAS_CONTRIB) == "0":
                pytest.skip("no contrib")
            for number in steps:
                advance(server, state, binary, number)
            yield server
        finally:
            anyio.run(server.stop)
            anyio.run(discard, state)


@pytest.mark.parametrize("steps", AGES.values(), ids=AGES)
@pytest.mark.parametrize("major", VERSIONS)
def test_rewinds_work_at_every_transaction_age(major: int, steps: list[int]) -> None:
    with old_server(major, steps) as server:
        if steps[-1] == _BEFORE_2_32:
            burn(server, 2**15 - LEFT)
        anyio.run(rewind_repeatedly, server)
        number = int(say(server, "SELECT pg_current_xact_id()"))
    assert number > (2**32 if steps[-1] == _BEFORE_2_32 else 2**31)


async def rewind_repeatedly(server: EmbeddedServer) -> None:
    async with open_harness(server, SCHEMA) as harness:
        for _ in range(3):
            for script in SCRIPTS:
                assert await harness.lease(script, verify_every=1), harness.why
                assert await harness.look() == harness.pristine, script
                await anyio.to_thread.run_sync(burn, server, 60)
        assert problems(server.psql, server.endpoint, harness.clone) == []


@pytest.mark.anyio
async def test_a_table_of_more_than_one_file_is_put_back(server: EmbeddedServer) -> None:
    async with open_harness(server, WIDE, looks=False) as harness:
        size = int(say(server, "SELECT pg_relation_size('m.wide')", database=harness.clone))
        assert size > GIB
        for script in (
            "DELETE FROM m.wide WHERE id = 5; UPDATE m.wide SET v = '' WHERE id >= 137999",
            "INSERT INTO m.wide VALUES (200000, 'x'); DELETE FROM m.wide WHERE id = 131072",
            "SELECT FROM m.wide WHERE id = 137000 FOR UPDATE",
        ):
            assert await harness.lease(script), harness.why
            found = say(server, COUNTED, database=harness.clone)
            assert found == "138000|9522069000|966000000", script
