"""The cost of templates: a start without changes, the check of the files, an edit, a build."""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg

from bench import peers
from bench.samples import middle, summary
from clonepool.client import Client
from clonepool.config import TemplateSection
from clonepool.postgres.embedded.server import discard
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.recipe import Recipe, read_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNCHANGED_FILES = 2000
WATCHED_FILES = 500
BUILT_FILES = 20
ROWS = 20_000
"""In each table of a built template: a second or so for all."""
SETTLE_SECONDS = 0.5
CONFIG = """\
[http]
listen = ""
[templates.files]
sql = ["{directory}/*.sql"]
min_ready = 2
max_clones = 4
"""


def run(directory: Path, *, short: bool) -> dict[str, Any]:
    """Measure each on files made for it and return the figures, times in seconds."""
    rounds = 3 if short else 15
    return {
        "look": _measure_look(_files(directory / "look", UNCHANGED_FILES), rounds),
        **_measure_daemon(directory, rounds),
        "build": _measure_build(directory, 2 if short else 7),
    }


def _files(directory: Path, count: int) -> Path:
    """Make some small files, the first of which creates a table."""
    directory.mkdir()
    directory.chmod(0o755)
    for number in range(count):
        text = f"-- {number}\n" + ("CREATE TABLE t (v int);\n" if number == 0 else "")
        (directory / f"{number}.sql").write_text(text)
    return directory


def _measure_look(files: Path, rounds: int) -> dict[str, Any]:
    """Look at files for the first time, and as a daemon does that starts and knows them."""
    recipe = Recipe("files", TemplateSection(sql=[f"{files}/*.sql"]), files)
    time.sleep(2.1)  # what was written just now is read again each time
    remembered = files / "digests.json"
    first: list[float] = []
    again: list[float] = []
    for _ in range(rounds):
        remembered.unlink(missing_ok=True)
        for times in (first, again):
            began = time.perf_counter()
            digests = Digests(remembered)
            found = read_files(recipe, digests)
            times.append(time.perf_counter() - began)
            digests.save()
            if len(found.sql) != UNCHANGED_FILES:
                raise RuntimeError(f"{len(found.sql)} of {UNCHANGED_FILES} files were seen")
    return {"files": UNCHANGED_FILES, "first": summary(first), "again": summary(again)}


def _measure_daemon(directory: Path, rounds: int) -> dict[str, Any]:
    """Start a daemon again and again on what the one before left, and edit files under one."""
    files = _files(directory / "watched", WATCHED_FILES)
    config = CONFIG.format(directory=files)
    starts = []
    try:
        with peers.daemon_run(directory, config) as (path, _), Client(str(path)) as client:
            client.lease("files", timeout=60).release()
            peers.await_rest(client)
        for _ in range(rounds):
            began = time.perf_counter()
            with peers.daemon_run(directory, config) as (path, _), Client(str(path)) as client:
                lease = client.lease("files", timeout=60)
                starts.append(time.perf_counter() - began)
                lease.release()
                peers.await_rest(client)
        with peers.daemon_run(directory, config) as (path, _), Client(str(path)) as client:
            client.lease("files", timeout=60).release()
            noticed = list(_edits(directory, files, client, rounds))
    finally:
        anyio.run(discard, directory / "state")
    return {
        "files": WATCHED_FILES,
        "start_to_lease": summary(starts),
        "edit_noticed": summary(noticed),
    }


def _edits(directory: Path, files: Path, client: Client, rounds: int) -> Iterator[float]:
    """Edit one file after the other; yield how long the daemon took to notice, by its log."""
    log = directory / "daemon.log"
    for number in range(rounds):
        time.sleep(SETTLE_SECONDS)
        before = len(_stale(log))
        edited = time.time()
        (files / f"{7 + number}.sql").write_text(f"-- edited {number}\n")
        while len(_stale(log)) == before:
            time.sleep(0.005)
        yield datetime.fromisoformat(_stale(log)[-1]).timestamp() - edited
        client.lease("files", timeout=60).release()


def _stale(log: Path) -> list[str]:
    lines = [line for line in log.read_text().splitlines() if '"template.stale"' in line]
    return [json.loads(line)["timestamp"] for line in lines]


def _measure_build(directory: Path, rounds: int) -> dict[str, Any]:
    """Build a template, and run the same files by psql, one after the other, into a database."""
    files = _sql(directory / "built")
    config = CONFIG.format(directory=files)
    ours: list[float] = []
    theirs: list[float] = []
    with (
        peers.daemon(directory, config) as (path, _),
        Client(str(path)) as client,
        client.lease("files", timeout=60) as lease,
    ):
        env, psql = {**os.environ, **lease.env}, anyio.run(_psql_of, lease.url)
        for _ in range(rounds):
            began = time.perf_counter()
            client.call("build", template="files", anew=True)
            ours.append(time.perf_counter() - began)
            peers.await_rest(client)
            theirs.append(_by_psql(files, psql, env))
    extra = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    return {
        "files": BUILT_FILES,
        "ours": summary(ours),
        "psql": summary(theirs),
        "overhead_seconds": middle(extra),
        "overhead_beyond_a_tenth": middle(
            [more - 0.1 * other for more, other in zip(extra, theirs, strict=True)]
        ),
    }


def _sql(directory: Path) -> Path:
    directory.mkdir()
    directory.chmod(0o755)
    for number in range(BUILT_FILES):
        (directory / f"{number}.sql").write_text(
            f"CREATE TABLE t{number} (id int PRIMARY KEY, text text NOT NULL);\n"
            f"INSERT INTO t{number} SELECT n, 'row ' || n FROM generate_series(1, {ROWS}) AS n;\n"
            f"CREATE INDEX ON t{number} (text);\n"
        )
    return directory


async def _psql_of(url: str) -> str:
    """Return the psql that fits the server: another starts in another time."""
    connection = await asyncpg.connect(url)
    try:
        directory = await connection.fetchval("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
    finally:
        await connection.close()
    return f"{directory}/psql"


def _by_psql(files: Path, psql: str, env: dict[str, str]) -> float:
    """Return the seconds that it takes by hand: a database, and each file in it."""
    name = "by_hand"

    def run_psql(database: str, *arguments: str) -> None:
        command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", *arguments]
        subprocess.run(command, env={**env, "PGDATABASE": database}, check=True)

    began = time.perf_counter()
    run_psql("postgres", "-c", f"CREATE DATABASE {name} TEMPLATE template0")
    for number in range(BUILT_FILES):
        run_psql(name, "-f", str(files / f"{number}.sql"))
    took = time.perf_counter() - began
    run_psql("postgres", "-c", f"DROP DATABASE {name}")
    return took
