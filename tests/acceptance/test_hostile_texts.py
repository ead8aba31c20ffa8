"""Labels, failures, queries and names with control characters for the reader's terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from clonepool.paths import SOCKET_VARIABLE
from support.daemons import CONFIG, eventually, running_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.daemons import Daemon

CLONEPOOL = [sys.executable, "-m", "clonepool"]
EVIL = "[/x] [red]\x1b]0;owned\x07\x9b2J\u202e"
SHOWN = r"[/x] [red]\x1b]0;owned\x07\x9b2J\u202e"
FAILING = """\
[templates.failing]
command = ["python3", "-c", "print('[/x] [red]\\\\x1b]0;owned\\\\x07'); raise SystemExit(1)"]
[templates.named]
sql = ["*.sql"]
min_ready = 0
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    files = {"[red] \x1b[31m.sql": "SELECT 1;"}
    with running_daemon(CONFIG + FAILING, files=files) as running:
        yield running


def run(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CLONEPOOL, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=60,
        env={
            **os.environ,
            SOCKET_VARIABLE: str(daemon.socket),
            "COLUMNS": "1000",
            "PYTHONIOENCODING": "utf-8",
        },
    )
    written = done.stdout + done.stderr
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(written)
    assert "Traceback" not in written
    return done


def test_the_status_shows_labels_and_failures_as_they_are(daemon: Daemon) -> None:
    eventually(lambda: bool(daemon.pool("failing")["failure"]))
    with daemon.client() as client, client.lease("blog", label=f"{EVIL}\nforged"):
        done = run(daemon, "status")
    assert done.returncode == 0
    assert f"{SHOWN}\\x0aforged" in done.stdout
    assert r"[/x] [red]\x1b]0;owned\x07" in done.stdout


def test_templates_and_builds_show_failures_as_they_are(daemon: Daemon) -> None:
    eventually(lambda: bool(daemon.pool("failing")["failure"]))
    listed = run(daemon, "templates")
    assert (listed.returncode, r"[/x] [red]\x1b]0;owned\x07" in listed.stdout) == (0, True)
    built = run(daemon, "build", "failing")
    assert (built.returncode, r"[/x] [red]\x1b]0;owned\x07" in built.stderr) == (1, True)


def test_names_of_files_are_shown_as_they_are(daemon: Daemon) -> None:
    built = run(daemon, "build", "named", "--anew")
    assert (built.returncode, r"[red] \x1b[31m.sql" in built.stderr) == (0, True)
    explained = run(daemon, "templates", "--explain", "named")
    assert (explained.returncode, r"[red] \x1b[31m.sql" in explained.stdout) == (0, True)


def test_release_shows_the_queries_of_sessions_that_it_ended_as_they_are(daemon: Daemon) -> None:
    taken = json.loads(run(daemon, "acquire", "-t", "blog", "--format", "json").stdout)
    with psycopg.connect(taken["url"], autocommit=True) as session:
        session.execute(f"SELECT 1 /* {EVIL} */".encode())
        done = run(daemon, "release", taken["lease"])
    assert (done.returncode, SHOWN in done.stderr) == (0, True)


def test_a_command_that_is_not_there_is_named_as_it_is(daemon: Daemon) -> None:
    done = run(daemon, "exec", "-t", "blog", "--", f"/absent/{EVIL}")
    assert (done.returncode, SHOWN in done.stderr) == (127, True)


def test_of_a_command_only_the_program_is_told_to_other_clients(daemon: Daemon) -> None:
    """Its arguments can be passwords, and every client sees the labels of all leases."""
    look = f"{sys.executable} -m clonepool status --json # --password=hidden"
    done = run(daemon, "exec", "-t", "blog", "--", "/bin/sh", "-c", look)
    assert done.returncode == 0
    assert [lease["label"] for lease in json.loads(done.stdout)["leases"]] == ["exec sh"]
    assert "hidden" not in done.stdout
