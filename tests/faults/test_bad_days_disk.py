"""The disk fills up: PostgreSQL or the storage budget notices; the daemon recovers by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from clonepool.errors import AcquireTimeoutError, ClonepoolError
from support.daemons import Daemon, clean_up, eventually, free_port, running_daemon
from support.outages import (
    COUNT,
    ExternalServer,
    assert_recovers,
    get,
    is_whole,
    logged,
    metric,
    problem,
    rows,
    running_external_server,
    said_once_each,
    template,
)
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")

LIMITED = 'clonepool_limited{limit="storage",template="blog"}'
MIB = 1024 * 1024


@contextmanager
def mounted(directory: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a small disk, and take it away at the end."""
    directory.mkdir(exist_ok=True)
    size = f"size={mebibytes}m,mode=0711"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def free_mib(directory: Path) -> float:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize / MIB


def fill(disk: Path, leaving_mib: float) -> Path:
    """Write a file that leaves so much free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, int((free_mib(disk) - leaving_mib) * MIB))
    return filler


@contextmanager
def external_server_with_small_tables(
    place: Path, mebibytes: int
) -> Iterator[tuple[ExternalServer, Path]]:
    """Run a server whose databases lie on a small disk, and its WAL does not."""
    with running_external_server(storage="disk") as postgres:
        base = postgres.server.storage.data / "base"
        postgres.stop()
        aside = place / "base"
        subprocess.run(["cp", "-a", base, aside], check=True)
        with mounted(base, mebibytes):
            subprocess.run(["cp", "-aT", aside, base], check=True)
            postgres.start()
            yield postgres, base
            postgres.stop()


@contextmanager
def daemon_on_small_disk(config: str, mebibytes: int) -> Iterator[Daemon]:
    """Run a daemon whose embedded server lies on a small disk."""
    with open_directory() as directory:
        daemon = Daemon(directory, config)
        with mounted(daemon.state, mebibytes):
            try:
                yield daemon.start()
            finally:
                (daemon.state / "filler").unlink(missing_ok=True)
                clean_up(daemon)


def test_a_disk_that_postgresql_says_is_full_ends_refills_until_there_is_room(place: Path) -> None:
    http = free_port()
    with external_server_with_small_tables(place, 160) as (postgres, disk):
        config = postgres.config("full", http=http) + template(min_ready=3, max_clones=20)
        with running_daemon(config) as daemon, daemon.client() as client:
            held = [client.lease("blog", timeout=20)]
            eventually(lambda: is_whole(daemon))
            filler = fill(disk, leaving_mib=0.5)
            held += [client.lease("blog", timeout=0) for _ in range(3)]
            eventually(lambda: daemon.pool()["limited_by"] == "storage", 10)
            with pytest.raises(AcquireTimeoutError, match="SQLSTATE 53100"):
                client.lease("blog", timeout=1)
            assert problem(daemon) == ""
            assert "SQLSTATE 53100" in daemon.pool()["last_error"]
            eventually(lambda: metric(http, LIMITED) == 1.0, 5)
            assert get(http, "/healthz")[0] == 200
            filler.unlink()
            assert_recovers(daemon)
            assert [rows(lease.url, COUNT) for lease in held] == [[{"count": 40}]] * 4
            for lease in held:
                lease.release()
            eventually(daemon.at_rest, 10)
            assert len(logged(daemon, "clone.create_failed")) == 1
            assert logged(daemon, "server.lost") == []
            assert metric(http, LIMITED) == 0.0


def test_the_guard_says_how_much_is_free_before_the_disk_is_full() -> None:
    config = '[http]\nlisten = ""\n[embedded]\nstorage = "disk"\nmin_free_mib = 60\n'
    with daemon_on_small_disk(config + template(min_ready=2, max_clones=20), 400) as daemon:
        eventually(lambda: is_whole(daemon))
        with daemon.client() as client:
            filler = fill(daemon.state, leaving_mib=62)
            held = [client.lease("blog", timeout=0) for _ in range(2)]
            eventually(lambda: daemon.pool()["limited_by"] == "storage", 5)
            with pytest.raises(AcquireTimeoutError, match="MiB are free"):
                client.lease("blog", timeout=1)
            assert f"{int(free_mib(daemon.state))} MiB are free" in daemon.pool()["last_error"]
            assert "60 MiB are to stay free" in daemon.pool()["last_error"]
            assert daemon.pool()["leased"] == daemon.status()["clones"]["used"] == 2
            filler.unlink()
            assert_recovers(daemon)
            for lease in held:
                lease.release()
        assert len(logged(daemon, "clone.create_failed")) == 1


def test_a_lease_that_fills_the_disk_costs_no_other_client_a_lease() -> None:
    config = '[http]\nlisten = ""\n[embedded]\nstorage = "disk"\nmin_free_mib = 0\n'
    with daemon_on_small_disk(config + template(min_ready=2, max_clones=20), 300) as daemon:
        eventually(lambda: is_whole(daemon))
        with daemon.client() as client:
            other, greedy = client.lease("blog"), client.lease("blog")
            eventually(lambda: is_whole(daemon))
            filler = fill(daemon.state, leaving_mib=1)
            with pytest.raises(ClonepoolError):
                rows(greedy.url, "CREATE TABLE much AS SELECT repeat('x', 900) FROM"
                     " generate_series(1, 200000)")  # fmt: skip
            with contextlib.suppress(ClonepoolError):
                client.lease("blog", timeout=0.5).release()
            assert daemon.process is not None
            assert daemon.process.poll() is None
            filler.unlink()
            assert_recovers(daemon)
            assert {lease["database"] for lease in client.call("leases")} == {
                other.database,
                greedy.database,
            }
            assert rows(other.url, COUNT) == [{"count": 40}]
            other.release()
            greedy.release()
        eventually(daemon.at_rest, 10)
        for event in ("clone.create_failed", "clone.drop_failed", "server.unreachable"):
            assert said_once_each(daemon, event)
            assert len(logged(daemon, event)) <= 3
