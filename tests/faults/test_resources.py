"""The server has no more of something: connections, disk."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway
from support.daemons import CONFIG, Daemon, clean_up, eventually, free_port, running_daemon
from support.queries import ask, value
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
OURS = (
    "SELECT count(*)::int FROM pg_stat_activity WHERE application_name LIKE 'clonepool main pid=%'"
)


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text = page.read().decode()
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.rpartition(" ")[2])


async def take_all(url: str, leave: Any) -> None:
    """Open connections until there are none left, wait, and let go of them."""
    endpoint = from_url(url)
    gateway = Gateway(endpoint, "greedy")
    taken = []
    try:
        while True:
            taken.append(await gateway.connect("postgres"))
    except Exception:  # noqa: BLE001 - whatever it is, there are no more
        await anyio.to_thread.run_sync(leave)
    for session in taken:
        await session.close()


def test_connections_used_up_by_others_stop_refills_and_nothing_else() -> None:
    port = free_port()
    config = CONFIG.replace('listen = ""', f'listen = "127.0.0.1:{port}"')
    config += "\n[embedded]\nmax_connections = 24\n[embedded.settings]\n"
    config += 'superuser_reserved_connections = "0"\n'
    with running_daemon(config) as daemon:
        eventually(daemon.at_rest)
        status = daemon.status()["server"]
        assert (status["max_connections"], status["own_connections"]) == (24, 7)
        with daemon.client() as client:
            url = client.lease("blog").url

            def meanwhile() -> None:
                granted = [client.lease("blog") for _ in range(3)]
                assert all(lease.source == "ready" for lease in granted)
                eventually(lambda: daemon.pool()["limited_by"] == "max_connections")
                assert "too many clients" in daemon.pool()["last_error"]
                limited = 'clonepool_limited{limit="max_connections",template="blog"}'
                assert metric(port, limited) == 1
                for lease in granted:
                    lease.release()

            anyio.run(take_all, url, meanwhile)
            eventually(lambda: daemon.pool()["ready"] == 3, 5)
            assert int(str(value(url, OURS))) <= status["own_connections"]
        eventually(daemon.at_rest, 5)
        assert daemon.pool()["limited_by"] == ""
        assert len(daemon.events("clone.create_failed")) <= 4
        assert len(daemon.events("server.lost")) == 0


def test_the_daemon_never_uses_more_connections_than_it_says() -> None:
    with running_daemon(CONFIG.replace("max_clones = 12", "max_clones = 30")) as daemon:
        own = daemon.status()["server"]["own_connections"]
        most = 0
        with daemon.client() as client:
            watched = client.lease("blog", timeout=30)
            for _ in range(4):
                leases = [client.lease("blog", timeout=30) for _ in range(10)]
                for lease in leases:
                    lease.release()
                most = max(most, int(str(value(watched.url, OURS))))
        assert 2 <= most <= own


@contextmanager
def small_disk(directory: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a file system of that size."""
    place = directory / "disk"
    place.mkdir(mode=0o711)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0711", "tmpfs", place], check=True
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def daemon_on(disk: Path, directory: Path, config: str) -> Iterator[Daemon]:
    daemon = Daemon(directory, config)
    daemon.state = disk / "state"
    try:
        yield daemon.start()
    finally:
        clean_up(daemon)


def fill(disk: Path, leave_mebibytes: int) -> Path:
    """Fill the disk up to that."""
    found = os.statvfs(disk)
    size = found.f_bavail * found.f_frsize - leave_mebibytes * 1024 * 1024
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return ballast


@needs_root
@pytest.mark.parametrize("guarded", [False, True], ids=["the disk says no", "the guard says no"])
def test_a_full_disk_stops_new_clones_until_there_is_room(guarded: bool) -> None:
    config = CONFIG + '\n[embedded]\nstorage = "disk"\n'
    config += f"min_free_mib = {60 if guarded else 0}\n"
    with (
        open_directory() as directory,
        small_disk(directory, 500) as disk,
        daemon_on(disk, directory, config) as daemon,
    ):
        eventually(daemon.at_rest, 30)
        ballast = fill(disk, 40 if guarded else 4)
        with daemon.client() as client:
            held = [client.lease("blog") for _ in range(3)]
            eventually(lambda: daemon.pool()["limited_by"] == "storage")
            said = daemon.pool()["last_error"]
            assert ("are to stay free" in said) is guarded, said
            assert value(held[0].url, "SELECT count(*) FROM blog.tb_user") == 40
            assert daemon.status()["server"]["free_bytes"] < 60 * 1024 * 1024
            ballast.unlink()
            eventually(lambda: daemon.pool()["ready"] == 3, 5, "whole again")
        eventually(daemon.at_rest)
        assert daemon.pool()["limited_by"] == ""
        assert len(daemon.events("clone.create_failed")) <= 3
        assert daemon.process is not None
        assert daemon.process.poll() is None


def test_a_budget_for_storage_holds_where_the_disk_cannot_be_seen() -> None:
    with running_daemon(CONFIG + "\n[pool]\nmax_storage_mib = 20\n") as daemon:
        eventually(lambda: daemon.pool()["ready"] == 2)
        eventually(lambda: daemon.pool()["limited_by"] == "storage")
        assert "MiB of 20 MiB" in daemon.pool()["last_error"]
        size = "SELECT sum(pg_database_size(oid))::int FROM pg_database WHERE datname LIKE 'cp\\_%'"
        assert int(str(ask(daemon, size + " AND NOT datistemplate"))) < 20 * 1024 * 1024
