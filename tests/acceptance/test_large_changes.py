"""Leases that change too much for a rewind delay no other lease and do not increase memory."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from support.daemons import CONFIG, Daemon, eventually, resident_bytes, running_daemon
from support.queries import run, value

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
MOST_MEMORY = 24 * MIB
"""By which the daemon may grow: each of these leases wrote several times as much."""
TEMPLATE = """\
CREATE TABLE small (id int PRIMARY KEY, v text);
INSERT INTO small SELECT n, 'v' FROM generate_series(1, 20) AS n;
"""
DAMAGE = {
    "many rows": "INSERT INTO small SELECT n, 'much' FROM generate_series(100, 200000) AS n",
    "a long value": "UPDATE small SET v = (SELECT string_agg(md5(n::text), '')"
    " FROM generate_series(1, 1000000) AS n) WHERE id = 1",
    "a value that shrinks when stored": "UPDATE small SET v = repeat('x', 50000000) WHERE id = 1",
    "many long values": "INSERT INTO small SELECT 100 + n, string_agg(md5((n * m)::text), '')"
    " FROM generate_series(1, 40) AS n, generate_series(1, 15000) AS m GROUP BY n",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    schema = tmp_path_factory.mktemp("schema") / "schema.sql"
    schema.write_text(TEMPLATE)
    blog = CONFIG.split("[templates.blog]")[0]
    with running_daemon(f'{blog}[templates.blog]\nsql = ["{schema}"]\n') as running:
        yield running


class Watch:
    """What another client and the kernel see of the daemon in that time."""

    def __init__(self, daemon: Daemon) -> None:
        self.slowest = 0.0
        self.most_memory = 0
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        first = resident_bytes(self._daemon)
        with self._daemon.client() as client:
            while not self._over.wait(0.005):
                began = time.monotonic()
                client.call("ping")
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.most_memory = max(self.most_memory, resident_bytes(self._daemon) - first)


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_writes_of_one_lease_delay_no_other(daemon: Daemon, kind: str) -> None:
    with daemon.client() as client:
        eventually(daemon.at_rest)
        lease = client.lease("blog", timeout=30)
        began = time.monotonic()
        run(lease.url, DAMAGE[kind])
        took = time.monotonic() - began
        with Watch(daemon) as watch:
            lease.release()
            eventually(daemon.at_rest, 60)
        print(kind, round(took, 2), round(watch.slowest, 3), watch.most_memory // MIB)  # noqa: T201
        assert watch.slowest < took / 3, "another client waited for what the lease had written"
        assert watch.most_memory < MOST_MEMORY
        again = client.lease("blog", timeout=30)
        assert value(again.url, "SELECT count(*) FROM small WHERE v = 'v'") == 20
        again.release()
