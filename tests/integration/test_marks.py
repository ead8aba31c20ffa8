"""Fifty concurrent clients leave marks that no other client may see."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import OWN_NAMES, Gateway
from support.daemons import eventually, running_daemon
from support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.daemons import Daemon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

CLIENTS, LEASES = 50, 1_000
CONFIG = f"""
[http]
listen = ""
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 8
max_clones = 30
"""


@pytest.fixture
def crowded() -> Iterator[Daemon]:
    with running_daemon(CONFIG) as daemon:
        yield daemon


class Witness:
    """Records which client has which clone, and which marks were seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held: set[str] = set()
        self.twice: list[str] = []
        self.foreign: list[str] = []
        self.done = 0

    def take(self, database: str) -> None:
        with self._lock:
            if database in self.held:
                self.twice.append(database)
            self.held.add(database)

    def give(self, database: str) -> None:
        with self._lock:
            self.held.discard(database)
            self.done += 1


async def test_a_thousand_leases_by_fifty_clients_never_meet(crowded: Daemon) -> None:
    witness = Witness()

    async def work() -> None:
        client = crowded.client()
        for _ in range(LEASES // CLIENTS):
            lease = await anyio.to_thread.run_sync(
                lambda: client.lease("blog", timeout=120), limiter=limiter
            )
            witness.take(lease.database)
            gateway = Gateway(from_url(lease.url), "mark")
            async with gateway.session(lease.database, OWN_NAMES) as session:
                mark = uuid.uuid4().hex[:20]
                await session.execute(
                    "INSERT INTO blog.tb_user (username, email, password_hash)"
                    f" VALUES ('m{mark}', '{mark}@x', 'x')"
                )
                rows = await session.rows(
                    "SELECT username FROM blog.tb_user WHERE username ~ '^m[0-9a-f]{20}$'"
                )
            witness.foreign += [r["username"] for r in rows if r["username"] != f"m{mark}"]
            witness.give(lease.database)
            await anyio.to_thread.run_sync(lease.release, limiter=limiter)
        client.close()

    limiter = anyio.CapacityLimiter(CLIENTS)
    async with anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(work)
    assert (witness.done, witness.twice, witness.foreign) == (LEASES, [], [])
    eventually(crowded.at_rest, 60, "all clones recycled")
    assert crowded.status()["clones"]["used"] == crowded.pool()["ready"] >= 8
