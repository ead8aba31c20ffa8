"""What the README tells to type does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio

from clonepool.paths import SOCKET_VARIABLE
from clonepool.postgres.embedded.server import discard
from support.servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from support.daemons import Daemon

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def block(language: str, containing: str) -> str:
    (found,) = (text for name, text in BLOCKS if name == language and containing in text)
    return str(found)


def test_the_commands_start_a_daemon_and_lease_from_it(place: Path) -> None:
    script = block("sh", "clonepool serve").replace(
        ".venv/bin/clonepool", f"{sys.executable} -m clonepool"
    )
    try:
        done = subprocess.run(
            ["bash", "-c", f"{script}\nkill %1\nwait %1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=ROOT,
            env={
                **os.environ,
                SOCKET_VARIABLE: str(place / "s"),
                "STATE_DIRECTORY": str(place / "state"),
            },
        )
    finally:
        anyio.run(discard, place / "state")
    assert done.returncode == 0, done.stderr
    assert "postgresql://" in done.stdout


def test_the_snippet_leases(shared_daemon: Daemon) -> None:
    snippet = block("python", "run_my_test").replace("run_my_test", "print")
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, SOCKET_VARIABLE: str(shared_daemon.socket)},
    )
    assert done.stdout.startswith("postgresql://")


def test_the_fixtures_give_each_test_a_database(shared_daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(block("python", "@pytest.fixture"))
    (tmp_path / "test_it.py").write_text(
        "seen = set()\n"
        "def test_one(database_url): seen.add(database_url)\n"
        "def test_two(database_url): assert database_url not in seen\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, SOCKET_VARIABLE: str(shared_daemon.socket)},
    )
    assert "2 passed" in done.stdout, done.stdout


def test_the_runner_gives_each_test_another_clone(shared_daemon: Daemon) -> None:
    tests = "tests = [print] * 3\n"
    done = subprocess.run(
        [sys.executable, "-c", tests + block("python", "db.exchange()")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, SOCKET_VARIABLE: str(shared_daemon.socket)},
    )
    urls = done.stdout.split()
    assert len(urls) == len(set(urls)) == 3
    assert all(url.startswith("postgresql://") for url in urls)


def test_the_configuration_is_one() -> None:
    assert block("toml", "[templates.shop]").startswith("[templates.shop]\nsql = [")
