"""Failures of the embedded server: the daemon survives or reports each clearly."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest

from clonepool.config import EmbeddedSection
from clonepool.errors import EmbeddedServerError, StatementError
from clonepool.postgres.embedded import cluster
from clonepool.postgres.embedded.server import MARKER, EmbeddedServer, discard
from support import binaries
from support.client_sessions import ClientGateway
from support.daemons import eventually, free_port
from support.servers import role_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

NEWEST, *_, OLDEST = binaries.available().values()


@pytest.fixture
def state(place: Path) -> Iterator[Path]:
    yield place
    anyio.run(discard, place)


def make(state: Path, directory: Path = NEWEST, **settings: object) -> EmbeddedServer:
    section = EmbeddedSection(binaries=str(directory), **settings)  # type: ignore[arg-type]
    return EmbeddedServer(section, state, 16)


async def query(server: EmbeddedServer, sql: str) -> object:
    async with ClientGateway(server.endpoint, "test").session("postgres") as session:
        return await session.value(sql)


async def execute(server: EmbeddedServer, sql: str) -> None:
    async with ClientGateway(server.endpoint, "test").session("postgres") as session:
        await session.execute(sql)


def pid_of(server: EmbeddedServer) -> int:
    return int((server.storage.data / "postmaster.pid").read_text().splitlines()[0])


async def test_it_is_found_again_with_its_data_after_a_clean_stop(state: Path) -> None:
    first = make(state)
    await first.start()
    await execute(first, "CREATE DATABASE kept")
    await first.stop()
    second = make(state)
    await second.start()
    assert await query(second, "SELECT count(*) FROM pg_database WHERE datname = 'kept'") == 1
    await second.stop()


async def test_a_running_server_is_adopted(state: Path) -> None:
    first = make(state)
    await first.start()
    first.release()  # as a daemon that was killed does
    second = make(state)
    await second.start()
    assert second.alive()
    assert pid_of(second) == pid_of(first)
    await second.stop()
    assert not first.alive()


async def test_a_running_server_with_other_settings_is_started_anew(state: Path) -> None:
    first = make(state)
    await first.start()
    first.release()  # as a daemon that was killed does
    second = make(state, settings={"work_mem": "7MB"})
    await second.start()
    assert await query(second, "SHOW work_mem") == "7MB"
    assert not first.alive()
    await second.stop()


async def test_a_killed_server_is_recovered(state: Path) -> None:
    server = make(state)
    await server.start()
    await execute(server, "CREATE DATABASE survivor")
    os.kill(pid_of(server), signal.SIGKILL)
    eventually(lambda: not server.alive())
    server.release()
    again = make(state)
    await again.start()
    assert await query(again, "SELECT count(*) FROM pg_database WHERE datname = 'survivor'") == 1
    await again.stop()


async def test_a_stale_pid_file_of_a_process_that_is_not_a_server_is_no_obstacle(
    state: Path,
) -> None:
    server = make(state)
    await server.start()
    await server.stop()
    lines = [str(os.getpid()), str(server.storage.data), "1", "5432", "", "", ""]
    (server.storage.data / "postmaster.pid").write_text("\n".join(lines))
    again = make(state)
    await again.start()
    assert pid_of(again) != os.getpid()
    await again.stop()


async def test_after_a_reboot_it_starts_afresh(state: Path) -> None:
    server = make(state)
    await server.start()
    await execute(server, "CREATE DATABASE untrusted")
    await server.stop()
    marker = cluster.read_marker(state / MARKER)
    assert marker is not None
    cluster.write_marker(state / MARKER, msgspec.structs.replace(marker, boot_id="before"))
    again = make(state)
    await again.start()
    assert await query(again, "SELECT count(*) FROM pg_database WHERE datname = 'untrusted'") == 0
    await again.stop()


async def test_damaged_data_is_thrown_away(state: Path) -> None:
    server = make(state)
    await server.start()
    await server.stop()
    control = server.storage.data / "global" / "pg_control"
    control.write_bytes(b"\x00" * control.stat().st_size)
    again = make(state)
    await again.start()
    assert await query(again, "SELECT 1") == 1
    await again.stop()


@pytest.mark.skipif(NEWEST == OLDEST, reason="only one version is here")
async def test_a_cluster_of_another_major_version_is_an_error_and_stays_untouched(
    state: Path,
) -> None:
    server = make(state, OLDEST)
    await server.start()
    await server.stop()
    with pytest.raises(EmbeddedServerError, match="was made by PostgreSQL"):
        await make(state, NEWEST).start()
    again = make(state, OLDEST)
    await again.start()
    await again.stop()


async def test_a_setting_that_postgresql_refuses_is_told_in_its_words(state: Path) -> None:
    server = make(state, settings={"shared_buffers": "a lot"})
    with pytest.raises(EmbeddedServerError, match="shared_buffers"):
        await server.start()
    assert not server.alive()


async def test_a_taken_tcp_port_is_told(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = make(state, port=taken.getsockname()[1])
        with pytest.raises(EmbeddedServerError, match="Address already in use"):
            await server.start()


async def test_without_a_port_no_tcp_port_is_open_and_with_one_it_is(state: Path) -> None:
    server = make(state)
    await server.start()
    assert await query(server, "SHOW listen_addresses") == ""
    assert server.endpoint.host.startswith("/")
    await server.stop()
    by_tcp = make(state, port=free_port())
    await by_tcp.start()
    assert by_tcp.clients.host == "127.0.0.1"
    await execute(by_tcp, "CREATE ROLE guest LOGIN PASSWORD 'plain'")
    guest = ClientGateway(role_of(by_tcp.clients, "guest"), "test")
    async with guest.session("postgres") as session:
        assert await session.value("SELECT inet_client_addr() IS NOT NULL")
    itself = msgspec.structs.replace(by_tcp.clients, user=by_tcp.endpoint.user)
    with pytest.raises(StatementError, match="pg_hba"):  # the daemon itself never comes by TCP
        await ClientGateway(itself, "test").connect("postgres")
    await by_tcp.stop()


def give_away(directory: Path, pattern: str) -> None:
    (found,) = directory.glob(pattern)
    os.chown(found, 65534, 65534)


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@contextlib.contextmanager
def small_disk(place: Path, mebibytes: int) -> Iterator[Path]:
    disk = place / "disk"
    disk.mkdir()
    size = f"size={mebibytes}m,mode=0711"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
async def test_a_full_disk_is_told_with_what_to_do(place: Path) -> None:
    with small_disk(place, 10) as disk:
        server = make(disk, storage="disk")
        with pytest.raises(
            EmbeddedServerError, match="no space left for a database cluster"
        ) as caught:
            await server.start()
        assert "embedded.storage" in caught.value.remedy
        assert not list((disk / "embedded").glob("data*"))


async def test_on_disk_the_data_lies_in_the_state_directory(state: Path) -> None:
    server = make(state, storage="disk")
    await server.start()
    assert server.storage.data == state / "embedded" / "data"
    assert await query(server, "SHOW fsync") == "off"
    await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
async def test_as_root_the_server_belongs_to_somebody_else(state: Path) -> None:
    server = make(state)
    await server.start()
    owner = owner_of(pid_of(server))
    await server.stop()
    assert owner != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has what others cannot read")
async def test_binaries_that_the_servers_user_cannot_read_are_copied(
    state: Path, place: Path
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    installation = NEWEST.parent
    shutil.copytree(
        installation, closed / installation.parent.name / installation.name, symlinks=True
    )
    libraries = installation.parent.with_name(f"{installation.parent.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    inside = closed / installation.parent.name / installation.name / "bin"
    server = make(state, inside)
    await server.start()
    assert await query(server, "SELECT 1") == 1
    await server.stop()
    assert str(server.psql).startswith(str(state / "clonepool-binaries-"))


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has what others cannot read")
async def test_a_copy_of_the_binaries_that_somebody_else_made_is_not_run(
    state: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "closed" / "package" / "pginstall" / "bin"
    closed.mkdir(parents=True)
    (place / "closed").chmod(0o700)
    for name in ("postgres", "initdb"):
        (closed / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.0'\n")
    monkeypatch.setattr("tempfile.tempdir", str(state))
    with pytest.raises(EmbeddedServerError, match="cannot be run"):
        make(state, closed)  # copied, but not executable
    give_away(state, "clonepool-binaries-*")
    with pytest.raises(EmbeddedServerError, match="belongs to another user"):
        make(state, closed)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone has something to lose")
async def test_a_lease_cannot_make_a_daemon_that_is_root_write_elsewhere(
    state: Path,
) -> None:
    server = make(state)
    await server.start()
    with pytest.raises(StatementError, match="failed"):
        await execute(
            server, f"COPY (SELECT 1) TO PROGRAM 'cat >&2; ln -sf /tmp/victim {server.storage.log}'"
        )
    with pytest.raises(StatementError, match="ermission denied"):
        await execute(server, f"COPY (SELECT 1) TO '{server.storage.root}/anything'")
    mode = server.storage.log.stat().st_mode & 0o777
    await server.stop()
    assert mode == 0o600
