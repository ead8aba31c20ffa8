"""The commands in README and docs/installing.md do what these pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

from clonepool.config import load
from clonepool.paths import SOCKET_VARIABLE
from clonepool.postgres.embedded.server import discard
from support import binaries
from support.servers import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from support.daemons import Daemon


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block(language: str, containing: str) -> str:
    (found,) = (text for text in blocks("README.md", language) if containing in text)
    return found


def with_this_clonepool(script: str) -> str:
    return re.sub(r"\bclonepool (?=[a-z])", f"{sys.executable} -m clonepool ", script)


FIXTURES = [
    text
    for page in ("README.md", "docs/installing.md")
    for text in blocks(page, "python")
    if "@pytest.fixture" in text
]


def test_the_commands_start_a_daemon_and_lease_from_it(place: Path) -> None:
    script = with_this_clonepool(block("sh", "clonepool serve"))
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


def test_a_second_project_has_a_daemon_of_its_own(place: Path) -> None:
    (script,) = (text for text in blocks("docs/installing.md", "sh") if "--state" in text)
    script = script.rstrip() + " &\nclonepool status --wait 30s\nkill %1\nwait %1"
    try:
        done = subprocess.run(
            ["bash", "-c", with_this_clonepool(script)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=place,
        )
    finally:
        anyio.run(discard, place / ".clonepool" / "state")
    assert done.returncode == 0, done.stderr
    assert (place / ".clonepool" / "state" / "secret").exists()


def test_the_shell_lease_lasts_until_it_is_released(shared_daemon: Daemon) -> None:
    lease, release = block("sh", "acquire").splitlines()
    psql = next(iter(binaries.available().values())) / "psql"
    ask = f'echo "$PGDATABASE"\n{psql} -XAtc "SELECT current_database()"'
    script = f"{lease}\n{ask}\n{release}\n"
    done = subprocess.run(
        ["bash", "-e", "-c", with_this_clonepool(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, SOCKET_VARIABLE: str(shared_daemon.socket)},
    )
    database, connected = done.stdout.split()[:2]
    assert database.startswith("cp_")
    assert connected == database
    with shared_daemon.client() as client:
        assert all(lease["database"] != database for lease in client.call("leases"))


@pytest.mark.parametrize("fixtures", FIXTURES, ids=range(len(FIXTURES)))
def test_the_fixtures_give_each_test_a_database(
    shared_daemon: Daemon, tmp_path: Path, fixtures: str
) -> None:
    (tmp_path / "conftest.py").write_text(fixtures.replace('"shop"', '"blog"'))
    (tmp_path / "test_it.py").write_text(
        "seen = set()\n"
        "def test_one(database_url):\n"
        "    assert database_url.startswith('postgresql://')\n"
        "    seen.add(database_url)\n"
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


def test_the_configurations_can_be_loaded(tmp_path: Path) -> None:
    files = ["schema.sql", "fixtures/1.sql"]
    for page in ("README.md", "docs/installing.md"):
        (text,) = (found for found in blocks(page, "toml") if "[templates." in found)
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("SELECT 1;")
        (tmp_path / "config.toml").write_text(text)
        assert list(load(tmp_path / "config.toml").templates) == ["shop"]
