"""Clusters in memory without a state directory are removed at a start, unless there is a reason."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Literal

import anyio
import pytest
import structlog

from clonepool.config import EmbeddedSection
from clonepool.errors import AlreadyRunningError
from clonepool.postgres.embedded import claims, postmaster, storage
from clonepool.postgres.embedded.abandoned import sweep
from clonepool.postgres.embedded.server import EmbeddedServer, discard
from clonepool.postgres.embedded.storage import Storage, memory_name, root_in_memory
from support import binaries
from support.client_sessions import ClientGateway
from support.daemons import Daemon, clean_up, eventually, running_daemon
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEWEST = next(iter(binaries.available().values()))
SPARE = "clonepool-0-00000000"
HOLD = """
import sys, time
from pathlib import Path
from clonepool.postgres.embedded import claims
held = claims.take(Path(sys.argv[1]), claims.read(Path(sys.argv[1])))
assert held is not None
print("held", flush=True)
time.sleep(600)
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do that")


@pytest.fixture
def memory(place: Path) -> Path:
    (place / "memory").mkdir()
    return place / "memory"


@pytest.fixture
def gone(place: Path) -> Path:
    """Return a state directory that is deleted."""
    return place / "deleted-state"


def abandon(memory: Path, state: Path) -> Path:
    """Make what a daemon of that state directory leaves in memory when it is killed."""
    state.mkdir()
    claim = claims.claim_of(state)
    state.rmdir()
    root = memory / memory_name(os.geteuid(), claim.state)
    (root / "data" / "base").mkdir(parents=True)
    (root / "data" / "base" / "1").write_bytes(b"x" * 100_000)
    held = claims.take(root, claim)
    assert held is not None
    os.close(held)
    return root


def swept(memory: Path) -> list[dict[str, object]]:
    """Sweep, and return what the log says of it."""
    with structlog.testing.capture_logs() as logs:
        anyio.run(sweep, memory, SPARE)
    return [dict(line) for line in logs]


def test_what_a_deleted_state_directory_left_in_memory_is_removed_and_told(
    memory: Path, gone: Path
) -> None:
    root = abandon(memory, gone)
    (told,) = swept(memory)
    assert told["event"] == "cluster.swept"
    assert told["storage"] == str(root)
    assert told["state"] == str(gone.resolve())
    assert int(str(told["bytes"])) >= 100_000
    assert not list(memory.iterdir())


def test_one_whose_state_directory_is_there_stays(memory: Path, gone: Path) -> None:
    root = abandon(memory, gone)
    gone.mkdir()
    assert swept(memory) == []
    assert (root / "data" / "base" / "1").exists()


def test_one_that_a_daemon_uses_stays_though_its_state_directory_is_gone(
    memory: Path, gone: Path
) -> None:
    root = abandon(memory, gone)
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"held\n"
        (told,) = swept(memory)
        daemon.kill()
    assert "its daemon still runs" in str(told["reason"])
    assert root.exists()
    (told,) = swept(memory)
    assert told["event"] == "cluster.swept"


def test_one_that_says_not_whose_it_is_stays_and_is_told(memory: Path, gone: Path) -> None:
    root = abandon(memory, gone)
    (root / claims.CLAIM).unlink()
    (told,) = swept(memory)
    assert told["event"] == "cluster.unclaimed"
    assert "earlier version" in str(told["reason"])
    assert (root / "data").exists()


def test_one_that_names_a_state_directory_of_another_name_stays(memory: Path, gone: Path) -> None:
    root = abandon(memory, gone)
    root.rename(memory / f"clonepool-{os.geteuid()}-0123abcd")
    (told,) = swept(memory)
    assert told["event"] == "cluster.unclaimed"


def test_a_state_directory_below_another_directory_of_the_same_name_is_not_gone(
    memory: Path, place: Path
) -> None:
    """So it looks where its file system is not mounted, and in another container."""
    (place / "mount").mkdir()
    root = abandon(memory, place / "mount" / "state")
    (place / "mount").rename(place / "unmounted")
    (place / "mount").mkdir()
    (told,) = swept(memory)
    assert told["event"] == "cluster.unclaimed"
    assert "cannot be seen" in str(told["reason"])
    assert root.exists()


def test_a_state_directory_that_was_deleted_with_those_above_it_is_gone(
    memory: Path, place: Path
) -> None:
    (place / "a" / "b").mkdir(parents=True)
    abandon(memory, place / "a" / "b" / "state")
    shutil.rmtree(place / "a")
    (told,) = swept(memory)
    assert told["event"] == "cluster.swept"


def test_a_state_directory_of_any_name_is_found_again(memory: Path, place: Path) -> None:
    name = os.fsdecode(b"caf\xe9 %41")
    root = abandon(memory, place / name)
    (place / name).mkdir()
    assert swept(memory) == []
    (place / name).rmdir()
    swept(memory)
    assert not root.exists()


@pytest.mark.parametrize("kind", ["link", "fifo", "stranger"])
def test_a_claim_that_is_no_file_of_ours_is_not_believed(
    memory: Path, gone: Path, kind: str
) -> None:
    root = abandon(memory, gone)
    claim = root / claims.CLAIM
    claim.rename(memory / "elsewhere")
    if kind == "link":
        claim.symlink_to(memory / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(claim)
    elif os.geteuid() == 0:
        (memory / "elsewhere").rename(claim)
        os.chown(claim, 54_321, 54_321)
    (told,) = swept(memory)
    assert told["event"] == "cluster.unclaimed"
    assert (root / "data").exists()


def test_something_that_is_not_ours_in_it_keeps_it(memory: Path, gone: Path) -> None:
    root = abandon(memory, gone)
    (root / "thesis.txt").write_text("mine")
    (told,) = swept(memory)
    assert told["event"] == "cluster.left"
    assert "thesis.txt" in str(told["reason"])
    assert (root / "thesis.txt").exists()
    assert (root / "data").exists()


def test_links_are_not_followed(memory: Path, gone: Path, place: Path) -> None:
    (place / "victim").mkdir()
    (place / "victim" / "file").write_text("dear")
    root = abandon(memory, gone)
    (root / "data" / "pg_tblspc").symlink_to(place / "victim")
    (memory / memory_name(os.geteuid(), "/elsewhere")).symlink_to(place / "victim")
    swept(memory)
    assert not root.exists()
    assert (place / "victim" / "file").read_text() == "dear"


def test_directories_deeper_than_the_stack_end_no_start(memory: Path, gone: Path) -> None:
    root = abandon(memory, gone)
    here = os.open(root / "data", os.O_DIRECTORY)
    for _ in range(2 * sys.getrecursionlimit()):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        told = swept(memory)
        assert told[-1]["event"] in ("cluster.left", "cluster.swept")
    finally:
        subprocess.run(["rm", "-rf", memory], check=True)


@as_root
def test_what_another_user_put_under_our_name_stays(memory: Path, gone: Path) -> None:
    root = abandon(memory, gone)
    os.chown(root, 54_321, 54_321)
    assert swept(memory) == []
    assert root.exists()


@as_root
def test_one_with_a_file_system_mounted_in_it_stays(memory: Path, gone: Path) -> None:
    root = abandon(memory, gone)
    mounted = root / "data" / "base"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
    try:
        (told,) = swept(memory)
        assert "mounted" in str(told["reason"])
        assert mounted.exists()
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def test_a_removal_that_was_cut_off_is_finished_and_an_empty_start_forgotten(
    memory: Path,
) -> None:
    name = f"clonepool-{os.geteuid()}-0123abcd"
    (memory / f"{name}.swept-89abcdef" / "data").mkdir(parents=True)
    (memory / name).mkdir()
    swept(memory)
    assert not list(memory.iterdir())


def test_a_start_meets_no_half_removed_cluster(memory: Path, gone: Path) -> None:
    """The sweeper holds the lock until the name is free; then the start makes another."""
    root = abandon(memory, gone)
    claim = claims.read(root)
    assert claim is not None
    with claims.locked(root) as alone:
        assert alone
        assert claims.take(root, claim) is None
        root.rename(memory / "aside")
        assert claims.take(root, claim) is None
    root.mkdir()
    held = claims.take(root, claim)
    assert held is not None
    with claims.locked(root) as alone:
        assert not alone
    os.close(held)


def make(state: Path, where: Literal["memory", "disk"] = "memory") -> EmbeddedServer:
    section = EmbeddedSection(binaries=str(NEWEST), storage=where)
    return EmbeddedServer(section, state, 16)


@pytest.fixture
def orphan(place: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """Return a server whose daemon was killed, and whose state directory was deleted.

    It lies where no other daemon on the machine sweeps.
    """
    memory.chmod(0o711)
    monkeypatch.setattr(storage, "_MEMORY", memory)
    (place / "state").mkdir(mode=0o711)
    server = make(place / "state")
    anyio.run(server.start)
    server.release()
    shutil.rmtree(place / "state")
    yield server
    anyio.run(server.stop)
    shutil.rmtree(server.storage.root, ignore_errors=True)


def test_a_server_without_daemon_and_state_directory_is_ended_and_removed(
    orphan: EmbeddedServer,
) -> None:
    told = swept(orphan.storage.root.parent)
    assert str(orphan.storage.root) in [line["storage"] for line in told]
    assert not orphan.alive()
    assert not orphan.storage.root.exists()


def test_such_a_server_is_not_taken_from_clients_that_are_connected(
    orphan: EmbeddedServer,
) -> None:
    async def visit() -> None:
        async with ClientGateway(orphan.endpoint, "test").session("postgres") as session:
            with structlog.testing.capture_logs() as logs:
                await sweep(orphan.storage.root.parent, SPARE)
            told = [line for line in logs if line["storage"] == str(orphan.storage.root)]
            assert "clients are connected" in told[0]["reason"]
            assert await session.value("SELECT 1") == 1

    anyio.run(visit)
    eventually(lambda: not orphan.alive(), what="it ends with the last client")
    swept(orphan.storage.root.parent)
    assert not orphan.storage.root.exists()


def test_a_daemon_whose_state_directory_was_deleted_keeps_its_server_from_its_successor(
    place: Path,
) -> None:
    with running_daemon() as first:
        shutil.rmtree(first.state)
        second = Daemon(first.directory)
        second.socket, second.log = place / "second.sock", place / "second.log"
        assert second.spawn().wait(60) != 0
        assert "state directory was deleted" in second.log.read_text()
        with first.client() as client:
            client.lease("blog", timeout=30).release()
        first.stop()
        # Unless another daemon on this machine was quicker.
        shutil.rmtree(root_in_memory(first.state), ignore_errors=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_start_of_any_daemon_sweeps_what_a_former_left(how: signal.Signals) -> None:
    with open_directory() as directory:
        former = Daemon(directory)
        try:
            former.start()
            root = root_in_memory(former.state)
            assert (root / "data").exists()
            former.stop(how)
            shutil.rmtree(former.state)
            with running_daemon() as next_one:
                left = [x for x in next_one.events("cluster.left") if str(root) in x]
                # Whichever daemon on this machine was the first to see it removes it.
                assert not [x for x in left if "its daemon still runs" not in x]
                eventually(lambda: not root.exists())
            assert postmaster.search(Storage(root, in_memory=True)) is None
        finally:
            clean_up(former)


def test_two_daemons_that_start_at_once_sweep_it_once(memory: Path, gone: Path) -> None:
    abandon(memory, gone)

    async def both() -> list[str]:
        with structlog.testing.capture_logs() as logs:
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(sweep, memory, SPARE)
        return [line["event"] for line in logs]

    assert anyio.run(both).count("cluster.swept") == 1
    assert not list(memory.iterdir())


def test_a_place_that_is_taken_is_told_and_its_server_let_be(place: Path) -> None:
    (place / "state").mkdir(mode=0o711)
    first, second = make(place / "state"), make(place / "state")
    anyio.run(first.start)
    try:
        with pytest.raises(AlreadyRunningError, match="another daemon uses"):
            anyio.run(second.start)
        anyio.run(second.stop)
        assert first.alive()
    finally:
        anyio.run(first.stop)
        anyio.run(discard, place / "state")


@pytest.fixture
def state(place: Path) -> Iterator[Path]:
    (place / "state").mkdir(mode=0o711)
    yield place / "state"
    anyio.run(discard, place / "state")


def test_a_cluster_that_is_to_be_on_disk_leaves_nothing_in_memory(state: Path) -> None:
    in_memory = make(state)
    anyio.run(in_memory.start)
    in_memory.release()  # its daemon is killed, and the server goes on
    on_disk = make(state, "disk")
    anyio.run(on_disk.start)
    anyio.run(on_disk.stop)
    assert not in_memory.alive()
    assert not in_memory.storage.root.exists()


def test_a_copy_of_a_state_directory_leaves_the_cluster_of_the_original_alone(
    state: Path, place: Path
) -> None:
    original = make(state)
    anyio.run(original.start)
    shutil.copytree(state, place / "copy")
    (place / "copy").chmod(0o711)
    copied = make(place / "copy", "disk")
    anyio.run(copied.start)
    anyio.run(copied.stop)
    assert original.alive()
    anyio.run(original.stop)


def test_what_a_killed_start_had_set_aside_is_removed_by_the_next(state: Path) -> None:
    server = make(state)
    anyio.run(server.start)
    anyio.run(server.stop)
    for name in ("data.old", "data.new"):
        (server.storage.root / name / "base").mkdir(parents=True)
    again = make(state)
    anyio.run(again.start)
    anyio.run(again.stop)
    assert not list(server.storage.root.glob("data.*"))
