"""The cost of a lease: acquire next to the smallest servers, first row, clone, memory, idle CPU."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg

from bench import bursts, cpu, peers
from bench.samples import distribution, ratios, summary
from clonepool.client import Client
from clonepool.postgres import databases
from clonepool.postgres.clones.lifecycle import make_clone, read_contents
from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.client import Lease

ROOT = Path(__file__).parent.parent
CLONES = 100
RELEASES = 20
"""Timed releases per round."""
QUERY = "SELECT count(*) FROM blog.tb_user"
IDLE_SECONDS = 20.0

CONFIG = """\
[http]
listen = "127.0.0.1:{port}"
[pool]
max_clones = {most}
[templates.blog]
sql = ["{root}/examples/blog/*.sql"]
min_ready = {clones}
max_clones = {clones}
"""


def run(directory: Path, *, short: bool) -> dict[str, Any]:
    """Measure on one daemon, the bursts on another; return the figures, times in seconds."""
    rounds = 2 if short else 30
    config = CONFIG.format(port=peers.free_port(), most=CLONES + 50, root=ROOT, clones=CLONES)
    with (
        peers.daemon(directory, config) as (socket_path, pid),
        Client(str(socket_path), name="bench") as client,
    ):
        peers.await_rest(client)
        version = client.call("status")["server"]["version"]
        with closing(_Floors(directory, client)) as floors, peers.apart([pid, *floors.pids]):
            acquires = _measure_acquires(client, floors, rounds)
        first_rows = anyio.run(_measure_first_rows, client, rounds)
        clones = anyio.run(_measure_clones, client, 10 if short else 100)
        peers.await_rest(client)
        resident = peers.resident_bytes(pid)
        idle = _idle_cpu(pid, 2.0 if short else IDLE_SECONDS)
    return {
        "postgresql": version,
        **acquires,
        **first_rows,
        "clone_made": clones,
        "daemon_resident_bytes_with_100_clones": resident,
        "daemon_idle_cpu_share": idle,
        "bursts": bursts.run(directory / "bursts", short=short),
    }


class _Floors:
    """The servers to compare with, and clients to them."""

    def __init__(self, directory: Path, client: Client) -> None:
        result = client.call("acquire", template="blog")
        client.call("release", lease=result["lease"])
        peers.await_rest(client)
        self._python = peers.floor(directory, json.dumps(result))
        self._c = peers.echo(directory)
        python_path, python_pid = self._python.__enter__()
        c_path, c_pid = self._c.__enter__()
        self.pids = [python_pid, c_pid]
        self.python = Client(str(python_path), name="bench")
        self.c = Client(str(c_path), name="bench")
        self._kept: list[Lease] = []

    def lease_of_python(self) -> None:
        """Lease, and keep the lease: it must not be released while the clock runs."""
        self._kept.append(self.python.lease("blog"))

    def close(self) -> None:
        """Stop them."""
        for client, server in ((self.python, self._python), (self.c, self._c)):
            client.close()
            server.__exit__(None, None, None)


def _measure_acquires(client: Client, floors: _Floors, rounds: int) -> dict[str, Any]:
    """Take every clone, each acquire beside a call to each floor by the same client code.

    The releases that are timed, like the acquires, meet a daemon that is recycling nothing.
    """
    times: dict[str, list[float]] = {
        name: [] for name in ("acquire", "python_floor", "c_echo", "release")
    }
    for _ in range(rounds):
        peers.await_rest(client)
        leases: list[Lease] = []
        for _ in range(CLONES):
            began = time.perf_counter()
            lease = client.lease("blog")
            times["acquire"].append(time.perf_counter() - began)
            leases.append(lease)
            _timed(times["python_floor"], floors.lease_of_python)
            _timed(times["c_echo"], lambda: floors.c.call("acquire", template="blog"))
        for lease in leases[:RELEASES]:
            _timed(times["release"], lease.release)
            peers.await_calm(client)
        for lease in leases[RELEASES:]:
            lease.release()
    figures: dict[str, Any] = {name: distribution(values) for name, values in times.items()}
    figures["acquire_over_python_floor"] = ratios(figures["acquire"], figures["python_floor"])
    figures["release_over_acquire"] = ratios(figures["release"], figures["acquire"])
    return figures


async def _measure_first_rows(client: Client, rounds: int) -> dict[str, Any]:
    """Lease, connect and query, beside connecting to one database again and again."""
    fresh: list[float] = []
    warm: list[float] = []
    for _ in range(max(1, rounds // 6)):
        peers.await_rest(client)
        kept = client.lease("blog")
        leases = [kept]
        await _first_row(kept.url)
        for _ in range(CLONES - 1):
            began = time.perf_counter()
            lease = client.lease("blog")
            await _first_row(lease.url)
            fresh.append(time.perf_counter() - began)
            leases.append(lease)
            began = time.perf_counter()
            await _first_row(kept.url)
            warm.append(time.perf_counter() - began)
        for lease in leases:
            lease.release()
    figures: dict[str, Any] = {"first_row": summary(fresh), "warm_connect_row": summary(warm)}
    figures["first_row_over_warm"] = ratios(figures["first_row"], figures["warm_connect_row"])
    return figures


async def _first_row(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.fetchval(QUERY)
    await connection.close()


async def _measure_clones(client: Client, count: int) -> dict[str, float]:
    """Make clones one after another with the daemon's own code, at rest."""
    peers.await_rest(client)
    lease = client.lease("blog")
    gateway = Gateway(from_url(peers.own_url(client)), "bench")
    async with gateway.session(lease.database) as session:
        contents = await read_contents(session)
        source = await session.value(
            "SELECT datname FROM pg_database WHERE datistemplate AND datname LIKE 'cp%'"
        )
    times: list[float] = []
    for number in range(count):
        name = f"bench_{number}"
        began = time.perf_counter()
        await make_clone(
            gateway, name, source, contents, options="STRATEGY file_copy", facts={}, seconds=30
        )
        times.append(time.perf_counter() - began)
        await databases.drop(gateway, name)
    await gateway.close()
    lease.release()
    return summary(times)


def _timed(times: list[float], call: Callable[[], object]) -> None:
    began = time.perf_counter()
    call()
    times.append(time.perf_counter() - began)


def _idle_cpu(pid: int, seconds: float) -> float:
    """Return the share of one core that the idle daemon uses."""
    before = cpu.own_seconds(pid)
    time.sleep(seconds)
    return (cpu.own_seconds(pid) - before) / seconds
