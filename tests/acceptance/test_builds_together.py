"""Templates that are built at the same time, with shared roles or on top of each other."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from support.daemons import Daemon, eventually, running_daemon
from support.queries import value

if TYPE_CHECKING:
    from pathlib import Path

HEAD = '[http]\nlisten = ""\n'
TWO = HEAD + "".join(
    f'[templates.t{number}]\nsql = ["roles.sql", "t.sql"]\nmin_ready = 1\nmax_clones = 3\n'
    for number in (1, 2)
)
ROLES = "DO $$ BEGIN CREATE ROLE app; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n"
SLOWLY = f"BEGIN; {ROLES} ALTER ROLE app SET work_mem = '%s'; SELECT pg_sleep(0.5); COMMIT;"
"""Two transactions that do this at a time cannot both succeed."""
BASE = """\
CREATE UNLOGGED TABLE cache (id int PRIMARY KEY);
INSERT INTO cache SELECT generate_series(1, 100);
"""
STACKED = (
    HEAD
    + '[templates.base]\nsql = ["base.sql"]\nmin_ready = 0\nmax_clones = 3\n'
    + '[templates.upper]\nextends = "base"\nsql = ["t.sql"]\nmin_ready = 1\nmax_clones = 3\n'
)
TABLE = "CREATE TABLE x (i int); INSERT INTO x VALUES (1);"
WIDE = """\
CREATE {how} TABLE x AS SELECT n, repeat('a', 100000) AS v FROM generate_series(1, 50) AS n;
"""


def whole(daemon: Daemon, *templates: str) -> bool:
    return all(daemon.pool(template)["phase"] == "ready" for template in templates)


def test_builds_that_need_the_same_role_do_not_fail_each_other(tmp_path: Path) -> None:
    del tmp_path
    with running_daemon(TWO, files={"roles.sql": SLOWLY % "5MB", "t.sql": TABLE}) as daemon:
        eventually(lambda: whole(daemon, "t1", "t2"), 40)
        (daemon.directory / "roles.sql").write_text(SLOWLY % "6MB")
        eventually(lambda: len(daemon.events("template.stale")) >= 2)
        with daemon.client() as client:
            for template in ("t1", "t2"):
                with client.lease(template, timeout=40) as lease:
                    assert value(lease.url, "SELECT count(*) FROM x") == 1
        assert not daemon.events("template.build_failed")


def test_what_a_crash_emptied_is_not_built_on() -> None:
    with running_daemon(STACKED, files={"base.sql": BASE, "t.sql": TABLE}) as daemon:
        eventually(lambda: whole(daemon, "base", "upper"), 40)
        with daemon.client() as client:
            lease = client.lease("upper", timeout=20)
            found = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
            os.kill(int(str(value(lease.url, found))), signal.SIGKILL)
            eventually(lambda: bool(daemon.events("server.found")), 40)
            for _ in range(3):
                with client.lease("upper", timeout=40) as after:
                    assert value(after.url, "SELECT count(*) FROM cache") == 100


@pytest.mark.parametrize("how", ["", "UNLOGGED"])
def test_a_table_that_is_long_as_text_and_short_when_stored_can_be_leased(how: str) -> None:
    config = HEAD + '[templates.wide]\nsql = ["wide.sql"]\nmin_ready = 1\nmax_clones = 3\n'
    with (
        running_daemon(config, files={"wide.sql": WIDE.format(how=how)}) as daemon,
        daemon.client() as client,
    ):
        for _ in range(3):
            with client.lease("wide", timeout=30) as lease:
                assert value(lease.url, "SELECT sum(length(v)) FROM x") == 5_000_000
                value(lease.url, "DELETE FROM x WHERE n = 1 RETURNING n")


def test_a_build_whose_session_always_ends_keeps_no_other_waiting() -> None:
    config = HEAD + "[pool]\nddl_concurrency = 1\n"
    config += '[templates.bad]\nsql = ["bad.sql"]\n[templates.good]\nsql = ["t.sql"]\n'
    files = {"bad.sql": "SELECT pg_terminate_backend(pg_backend_pid());", "t.sql": TABLE}
    with running_daemon(config, files=files) as daemon, daemon.client() as client:
        client.lease("good", timeout=30).release()
