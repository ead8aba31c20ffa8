"""After thousands of leases, memory and files have not grown, and leases are as fast."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import lanes
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import ask

if TYPE_CHECKING:
    from clonepool.client import Client

LEASES = int(os.environ.get("CLONEPOOL_ENDURANCE_LEASES") or lanes.rounds(standard=300, slow=3000))
"""For each kind of lease; `make endurance` takes 20,000."""
WARM_UP = lanes.rounds(standard=100, slow=200)
ROWS_OF_A_CLONE = 8
MIB = 1024 * 1024
CATALOGS = [
    "pg_authid",
    "pg_auth_members",
    "pg_db_role_setting",
    "pg_shdescription",
    "pg_database",
    "pg_shdepend",
]
SIZES = f"""\
SELECT string_agg(pg_total_relation_size(name::regclass)::text, ' ' ORDER BY n)
  FROM unnest('{{{",".join(CATALOGS)}}}'::text[]) WITH ORDINALITY AS c(name, n)
"""
ROWS = " UNION ALL ".join(f"SELECT count(*) AS n FROM {name}" for name in CATALOGS)


KINDS = {
    "bound to the connection": (None, "", 1, 0.002),
    "with a time": (30.0, "", 1, 0.002),
    "recreated": (None, 'recycle = "recreate"\nrights = "owner"\n', 4, 0.05),
}


@pytest.mark.long
@pytest.mark.timeout(300 + LEASES // 4)
@pytest.mark.parametrize("kind", KINDS)
def test_neither_memory_nor_files_nor_shared_catalogs_grow_with_leases(kind: str) -> None:
    ttl, more, share, slack = KINDS[kind]
    with running_daemon(CONFIG + more) as daemon, daemon.client() as client:
        eventually(daemon.at_rest)
        lease_often(client, WARM_UP, ttl)
        eventually(daemon.at_rest)
        before, first = measure(daemon), lease_often(client, WARM_UP, ttl)
        lease_often(client, LEASES // share, ttl)
        last = lease_often(client, WARM_UP, ttl)
        eventually(daemon.at_rest)
        after = measure(daemon)
    # Each clone has some, and how many are held ready follows the demand.
    assert after["rows"] <= before["rows"] + 12 * ROWS_OF_A_CLONE
    for name in ("resident", "log", *CATALOGS):
        assert after[name] <= 1.3 * before[name] + MIB, name
    assert after["files"] <= before["files"] + 8
    assert quick(last) <= 3 * quick(first) + slack


def quick(seconds: list[float]) -> float:
    """Return what all but a tenth took at least: what else the machine does slows the others."""
    return statistics.quantiles(seconds, n=10)[0]


def lease_often(client: Client, count: int, ttl: float | None) -> list[float]:
    """Take and give back leases; return how long each acquire took, in seconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        lease = client.lease("blog", timeout=60, ttl=ttl)
        times.append(time.perf_counter() - began)
        lease.release()
    return times


def measure(daemon: Daemon) -> dict[str, float]:
    assert daemon.process is not None
    process = Path(f"/proc/{daemon.process.pid}")
    resident = int(process.joinpath("status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    sizes = map(int, str(ask(daemon, SIZES)).split())
    rows = ask(daemon, f"SELECT sum(n)::int FROM ({ROWS}) AS counted")
    return {
        "resident": resident,
        "files": len(list(process.joinpath("fd").iterdir())),
        "log": daemon.log.stat().st_size,
        "rows": int(str(rows)),
        **dict(zip(CATALOGS, sizes, strict=True)),
    }
