"""Leases a second with recycling, beside plain CREATE and DROP by the same clients; `make bench`.

The template has 20 tables of 100 rows. A lease connects, writes to 4 of them, disconnects and is
released. The two ways take turns on one server, a few seconds each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg

from bench import peers
from clonepool.client import Client
from clonepool.postgres.endpoint import from_url

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS = 4
TABLES, ROWS = 20, 100
SCHEMA = "".join(
    f"CREATE TABLE t{n} (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());\n"
    f"INSERT INTO t{n} SELECT i, 'row ' || i FROM generate_series(1, {ROWS}) i;\n"
    for n in range(TABLES)
)
WRITES = "; ".join(
    f"UPDATE t{n} SET v = 'x' WHERE id < 6; INSERT INTO t{n} VALUES (1000); DELETE FROM t{n}"
    " WHERE id = 50"
    for n in range(4)
)
CONFIG = """\
[http]
listen = "127.0.0.1:{port}"
[templates.bench]
sql = ["schema.sql"]
min_ready = 8
max_clones = 16
recycle = "{recycle}"
verify_every = 0
"""


async def _write(url: str) -> None:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    await connection.execute(WRITES)
    await connection.close()


def by_leases(socket_path: str, _: str, until: float) -> list[float]:
    """Lease, write, release; return the seconds that each acquire took."""
    waits = []
    with Client(socket_path) as client:
        while time.monotonic() < until:
            began = time.perf_counter()
            lease = client.lease("bench", timeout=60)
            waits.append(time.perf_counter() - began)
            anyio.run(_write, lease.url)
            lease.release()
    return waits


def by_hand(_: str, url: str, until: float) -> list[float]:
    """Create, write, drop; return the seconds that each creation took."""
    return anyio.run(_by_hand, url, until)


async def _by_hand(url: str, until: float) -> list[float]:
    waits = []
    endpoint = from_url(url)
    admin = await asyncpg.connect(endpoint.url("postgres"), statement_cache_size=0)
    source = await admin.fetchval(
        "SELECT datname FROM pg_database WHERE datistemplate AND datname LIKE 'cp\\_%'"
    )
    number = 0
    while time.monotonic() < until:
        number += 1
        name = f"plain_{admin.get_server_pid()}_{number}"
        began = time.perf_counter()
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")
        waits.append(time.perf_counter() - began)
        await _write(endpoint.url(name))
        await admin.execute(f"DROP DATABASE {name}")
    await admin.close()
    return waits


def saturate(
    work: Callable[[str, str, float], list[float]], socket_path: str, url: str, seconds: float
) -> dict[str, float]:
    """Let all clients work at once, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    until = time.monotonic() + seconds + 1.0  # they take a while to start
    with context.Pool(CLIENTS) as processes:
        began = time.monotonic()
        done = processes.starmap(work, [(socket_path, url, until)] * CLIENTS)
        took = time.monotonic() - began
    waits = sorted(wait for each in done for wait in each)
    return {
        "per_second": len(waits) / took,
        "p50": statistics.median(waits),
        "p95": waits[int(len(waits) * 0.95)],
    }


def measure(recycle: str, seconds: float) -> dict[str, Any]:
    """Run one daemon and return its figures, times in seconds."""
    with tempfile.TemporaryDirectory(prefix="clonepool-bench-") as name:
        directory, port = Path(name), peers.free_port()
        directory.chmod(0o711)
        (directory / "schema.sql").write_text(SCHEMA)
        config = CONFIG.format(port=port, recycle=recycle)
        with peers.daemon(directory, config) as (path, _), Client(str(path)) as client:
            peers.await_rest(client)
            url = client.lease("bench").url
            figures = {"leases": saturate(by_leases, str(path), url, seconds)}
            figures["plain"] = saturate(by_hand, str(path), url, seconds)
            figures["recycle"] = {"mean_read_only": _recycle(client, port, "SELECT 1")}
            figures["recycle"]["mean_four_tables"] = _recycle(client, port, WRITES)
            return figures


def _recycle(client: Client, port: int, script: str) -> float:
    """Return the mean seconds of a rewind after this script, as the daemon measured them."""
    before = _rewinds(port)
    for _ in range(50):
        lease = client.lease("bench", timeout=60)
        anyio.run(_execute, lease.url, script)
        lease.release()
        peers.await_rest(client)
    seconds, count = (now - then for now, then in zip(_rewinds(port), before, strict=True))
    return seconds / count if count else float("nan")


async def _execute(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(script)
    await connection.close()


def _rewinds(port: int) -> tuple[float, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    name = 'clonepool_rewind_seconds_{}{{template="bench"}}'
    return float(values[name.format("sum")]), float(values[name.format("count")])


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    figures = {way: measure(way, arguments.seconds) for way in ("auto", "recreate")}
    arguments.output.mkdir(exist_ok=True)
    (arguments.output / "recycling.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
