"""The daemon is killed right before and right after each step of a build.

The next daemon leases complete clones, and no unfinished build is left or used as a template.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from clonepool.client import Client
from clonepool.errors import ConnectionLostError, DaemonNotFoundError
from clonepool.postgres.embedded.binaries import find_psql
from support.daemons import Daemon, clean_up, eventually
from support.kill_points import spawn
from support.queries import ask, run, value
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = f"""
[http]
listen = ""
[client_templates]
allow = true
[templates.base]
sql = ["base.sql"]
min_ready = 0
[templates.whole]
extends = "base"
extensions = ["pg_trgm"]
dump = "more.dump.sql"
sql = ["last.sql"]
command = "{find_psql()} --quiet --command 'CREATE TABLE by_command AS SELECT 4 AS v'"
settings = {{ work_mem = "7MB" }}
min_ready = 1
max_clones = 4
"""
FILES = {
    "base.sql": "CREATE TABLE base AS SELECT 1 AS v;",
    "more.dump.sql": "CREATE TABLE by_dump AS SELECT 2 AS v;",
    "last.sql": "CREATE TABLE last AS SELECT 3 AS v;",
}
STEPS = ["before:build.create:1"] + [  # after one step is before the next
    f"after:build.{step}"
    for step in (
        "create:1", "copy:1", "extension:1", "dump:1", "file:1", "file:2", "command:1",
        "settings:1", "freeze:2", "annotate:2", "seal:2", "rename:2",
    )
]  # fmt: skip
FILLING = ["before:made.empty:1"] + [
    f"after:{step}"
    for step in (
        "made.empty:1", "build.rename:3", "build.freeze:3", "build.annotate:3", "build.seal:3",
        "build.rename:4", "made.finish:1",
    )
]  # fmt: skip
"""A client fills a template: base and whole were built before. It is hidden, then finished."""
COPYING = ["before:made.copy:1"] + [
    f"after:{step}"
    for step in (
        "made.copy:1", "build.rename:5", "build.freeze:4", "build.annotate:4", "build.seal:4",
        "build.rename:6", "made.finish:2",
    )
]  # fmt: skip
"""A snapshot is made after that."""
WHOLE = "SELECT base.v + by_dump.v + by_command.v + last.v FROM base, by_dump, by_command, last"
UNFINISHED = "SELECT count(*) FROM pg_database WHERE datname ~ '^cp_.*_b[0-9a-z]+_[a-z2-7]+$'"
SEALED = "SELECT count(*) FROM pg_database WHERE datname ~ '^cp_.*_t0_' AND datistemplate"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with open_directory() as directory:
        daemon = Daemon(directory, CONFIG)
        for name, text in FILES.items():
            (directory / name).write_text(text)
        try:
            yield daemon
        finally:
            clean_up(daemon)


def run_until_killed(daemon: Daemon, killed_at: str, client_makes: bool) -> None:
    daemon.process = spawn(daemon, killed_at)
    if client_makes:
        eventually(lambda: _listens(daemon), 60)
        with (
            contextlib.suppress(ConnectionLostError, DaemonNotFoundError, OSError),
            Client(str(daemon.socket)) as client,
        ):
            make(client)
    assert daemon.process.wait(60) == -9, daemon.log.read_text()


def _listens(daemon: Daemon) -> bool:
    try:
        daemon.client().close()
    except (DaemonNotFoundError, ConnectionLostError):
        return False
    return True


def make(client: Client) -> str:
    """Make a template of each kind; return the defined one's name."""
    with client.define("content") as definition:
        if not definition.filled:
            run(definition.url, "CREATE TABLE t AS SELECT 5 AS v")
    with client.lease("whole", timeout=30) as lease:
        run(lease.url, "UPDATE base SET v = 11")
        lease.snapshot("changed")
    return definition.template


def check(daemon: Daemon) -> None:
    daemon.start()
    with daemon.client() as client, client.lease("whole", timeout=30) as lease:
        assert value(lease.url, WHOLE) == 10
        assert value(lease.url, "SELECT similarity('a', 'a')::int") == 1
        assert value(lease.url, "SHOW work_mem") == "7MB"
    assert ask(daemon, UNFINISHED) == 0


@pytest.mark.parametrize("killed_at", STEPS)
def test_a_daemon_killed_at_any_step_of_a_build_leaves_none_or_a_whole_template(
    daemon: Daemon, killed_at: str
) -> None:
    run_until_killed(daemon, killed_at, client_makes=False)
    check(daemon)
    assert ask(daemon, SEALED) == 2


@pytest.mark.parametrize("killed_at", [*FILLING, *COPYING])
def test_a_daemon_killed_while_a_client_makes_a_template_leaves_none_or_a_whole_one(
    daemon: Daemon, killed_at: str
) -> None:
    run_until_killed(daemon, killed_at, client_makes=True)
    check(daemon)
    with daemon.client() as client:
        assert ask(daemon, SEALED) in {2, 3, 4}
        defined = make(client)
        with client.lease(defined, timeout=30) as lease:
            assert value(lease.url, "SELECT v FROM t") == 5
        with client.lease("changed", timeout=30) as lease:
            assert value(lease.url, WHOLE) == 20
    eventually(lambda: ask(daemon, SEALED) == 4)
    assert ask(daemon, UNFINISHED) == 0
