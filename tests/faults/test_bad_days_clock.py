"""The daemon's clock is set back an hour: deadlines and leases follow elapsed time."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.errors import AcquireTimeoutError, PoolFullError
from support.clocks import find_libfaketime, set_back_daemon
from support.daemons import eventually
from support.outages import ExternalServer, is_whole, logged, running_external_server, template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.daemons import Daemon

pytestmark = pytest.mark.skipif(
    find_libfaketime() is None and not os.environ.get("CI"),
    reason="libfaketime is not installed (apt-get install faketime)",
)
HOUR = 3600
TOLERANCE = 2.0
"""How late the daemon may be on a busy machine, in seconds; it may never be early."""

LIFE = 12
"""A lease's TTL in seconds: longer than a restart takes on a busy machine."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server() as running:
        yield running


RECREATE = 'recycle = "recreate"\n'


def leases(daemon: Daemon) -> list[dict[str, Any]]:
    with daemon.client() as client:
        found: list[dict[str, Any]] = client.call("leases")
    return found


def test_a_clock_set_back_changes_no_deadline_of_a_running_daemon(postgres: ExternalServer) -> None:
    config = postgres.config("running") + template(min_ready=0, max_clones=1) + RECREATE
    with set_back_daemon(config) as daemon, daemon.client() as client:
        asked = time.monotonic()
        lease = client.lease("blog", timeout=20, ttl=LIFE)
        granted = time.monotonic()
        daemon.set_clock(-HOUR)
        began = time.monotonic()
        with pytest.raises((AcquireTimeoutError, PoolFullError)):
            client.lease("blog", timeout=1)
        assert 1 <= time.monotonic() - began < 1 + TOLERANCE
        before = time.monotonic()
        (found,) = leases(daemon)
        assert found["database"] == lease.database
        assert found["expires_in_seconds"] <= granted + LIFE - before + 0.1
        eventually(lambda: not leases(daemon), LIFE + TOLERANCE)
        assert asked + LIFE <= time.monotonic() < granted + LIFE + TOLERANCE
        second = client.lease("blog", timeout=10)
        assert second.database != lease.database
        second.release()
        stamps = [entry["timestamp"] for entry in logged(daemon, "lease.expired")]
        assert stamps[0] < logged(daemon, "daemon.started")[0]["timestamp"]  # it was set back


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_lease_lives_over_a_restart_as_long_as_it_was_given_whatever_the_clock_says(
    postgres: ExternalServer, number: signal.Signals
) -> None:
    config = postgres.config(f"again{number}") + template(min_ready=1, max_clones=3)
    with set_back_daemon(config) as daemon:
        with daemon.client() as client:
            asked = time.monotonic()
            lease = client.lease("blog", timeout=20, ttl=LIFE)
            granted = time.monotonic()
        eventually(lambda: is_whole(daemon))
        daemon.stop(number)
        daemon.set_clock(-HOUR)
        daemon.start()
        before = time.monotonic()
        (found,) = leases(daemon)
        after = time.monotonic()
        assert found["database"] == lease.database
        assert asked + LIFE - after <= found["expires_in_seconds"] + 0.1
        assert found["expires_in_seconds"] <= granted + LIFE - before + 0.1
        assert found["held_seconds"] <= time.monotonic() - asked + 0.1
        eventually(lambda: not leases(daemon), LIFE + TOLERANCE)
        assert asked + LIFE <= time.monotonic() < granted + LIFE + TOLERANCE
        eventually(lambda: lease.database not in postgres.databases(), 10)


def test_no_name_is_used_twice_though_the_clock_says_the_same_at_every_start(
    postgres: ExternalServer,
) -> None:
    config = (
        postgres.config("names")
        + template(min_ready=0, max_clones=8)
        + RECREATE
        + "shrink_after = 0.5\n"
    )
    names: list[str] = []
    with set_back_daemon(config) as daemon:
        began = daemon.spawned_at
        for again in (False, True):
            if again:
                daemon.stop()
                daemon.set_clock(began - time.time())
                daemon.start()
            with daemon.client() as client:
                held = [client.lease("blog", timeout=20) for _ in range(8)]
                names += [lease.database for lease in held]
                for lease in held:
                    lease.release()
            eventually(lambda: not daemon.status()["clones"]["used"], 10)
    assert len(set(names)) == len(names)
