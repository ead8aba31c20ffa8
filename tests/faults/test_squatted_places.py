"""Other users have placed files under the daemon's names: nothing hangs, no link is followed."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from clonepool import paths, trusted_files
from clonepool.config import EmbeddedSection
from clonepool.errors import ConfigError, EmbeddedServerError
from clonepool.postgres.embedded import storage as places
from clonepool.postgres.embedded.account import Account
from clonepool.postgres.embedded.binaries import Binaries
from clonepool.postgres.embedded.cluster import ClusterCheck, Marker, check_cluster, read_marker
from clonepool.postgres.embedded.postmaster import find_running
from clonepool.postgres.embedded.server import EmbeddedServer, discard
from clonepool.postgres.embedded.storage import Storage, choose_storage, prepare
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.psql.script_events import ScriptEvent
from clonepool.service.state_files import load_secret, reserve_serials
from support import binaries
from support.daemons import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = Account("me", os.geteuid(), os.getegid(), switch=False)
SOMEBODY = 54_321
KNOWN = ScriptEvent(1, r"\i", "known.sql")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """Return what the action returns, or fail when it has not come back by then."""
    ended: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((action(), None))
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, f"still at it after {seconds:g} s"
    result, error = ended[0]
    if error is not None:
        raise error
    return result


def put(path: Path, kind: str, target: Path) -> None:
    """Put a FIFO, a link to the target, or a directory under a name."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    else:
        path.mkdir()


@pytest.fixture
def target(place: Path) -> Path:
    path = place / "victim"
    path.write_text("18\n")
    return path


@pytest.fixture
def state(place: Path) -> Iterator[Path]:
    (place / "state").mkdir(mode=0o711)
    yield place / "state"
    anyio.run(discard, place / "state")


def cluster_in(place: Path) -> Storage:
    found = Storage(place, in_memory=False)
    found.data.mkdir()
    (found.data / "PG_VERSION").write_text("18\n")
    return found


def started(state: Path) -> EmbeddedServer:
    server = EmbeddedServer(
        EmbeddedSection(binaries=str(next(iter(binaries.available().values())))), state, 16
    )
    within(60, lambda: anyio.run(server.start))
    return server


# The server's data, where leases are superusers and can write anything. -------------


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_a_version_that_is_no_file_of_the_servers_is_none(
    place: Path, target: Path, kind: str
) -> None:
    found = cluster_in(place)
    put(found.data / "PG_VERSION", kind, target)
    marker = Marker("boot", str(place), "pw")
    judged = within(10, lambda: check_cluster(found, marker, Binaries(Path("/b"), 18), "boot"))
    assert judged is ClusterCheck.MISSING


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_pid_file_that_is_no_file_is_removed_and_what_it_links_to_stays(
    place: Path, target: Path, kind: str
) -> None:
    found = cluster_in(place)
    put(found.data / "postmaster.pid", kind, target)
    assert within(10, lambda: find_running(found)) is None
    assert not os.path.lexists(found.data / "postmaster.pid")
    assert target.read_text() == "18\n"


def test_a_pid_file_that_cannot_be_removed_is_told(place: Path, target: Path) -> None:
    found = cluster_in(place)
    put(found.data / "postmaster.pid", "directory", target)
    with pytest.raises(EmbeddedServerError, match=r"postmaster\.pid"):
        within(10, lambda: find_running(found))


@as_root
def test_a_pid_file_of_another_user_is_not_believed(place: Path) -> None:
    found = cluster_in(place)
    (found.data / "postmaster.pid").write_text(f"{os.getpid()}\n")
    os.chown(found.data / "postmaster.pid", SOMEBODY, SOMEBODY)
    assert find_running(found) is None


def test_locks_are_not_removed_through_a_link(place: Path) -> None:
    found = cluster_in(place)
    (place / "elsewhere").mkdir()
    kept = place / "elsewhere" / ".s.PGSQL.5432.lock"
    kept.touch()
    found.socket.symlink_to(place / "elsewhere")
    (found.data / "postmaster.pid").write_text(f"{os.getpid()}\n")
    assert find_running(found) is None
    assert kept.exists()


def test_what_is_removed_is_removed_without_following_links(place: Path, target: Path) -> None:
    found = cluster_in(place)
    (place / "kept").mkdir()
    (place / "kept" / "file").touch()
    (found.data / "link").symlink_to(place / "kept")
    places.remove(found)
    assert shutil.rmtree.avoids_symlink_attacks
    assert ((place / "kept" / "file").exists(), target.exists()) == (True, True)


def test_a_fifo_as_version_means_a_new_cluster_and_no_hang(state: Path) -> None:
    server = started(state)
    anyio.run(server.stop)
    put(server.storage.data / "PG_VERSION", "fifo", state)
    again = started(state)
    assert stat.S_ISREG((again.storage.data / "PG_VERSION").lstat().st_mode)
    anyio.run(again.stop)


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_running_server_is_found_although_its_pid_file_was_replaced(
    state: Path, place: Path, kind: str
) -> None:
    server = started(state)
    found = find_running(server.storage)
    assert found is not None
    (place / "victim").write_text(f"{os.getpid()}\n")
    put(server.storage.data / "postmaster.pid", kind, place / "victim")
    again = within(10, lambda: find_running(server.storage))
    assert again is not None
    assert again.pid == found.pid
    anyio.run(server.stop)


# The state directory. --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_digests_are_neither_read_from_nor_written_to_what_is_no_file_of_ours(
    place: Path, target: Path, kind: str
) -> None:
    file = place / "digests.json"
    put(file, kind, target)
    (place / "digests.json.new").symlink_to(target)
    source = place / "a.sql"
    source.write_text("SELECT 1")
    os.utime(source, (1, 1))
    digests = within(10, lambda: Digests(file))
    digests.events(str(source), lambda _: [])
    within(10, digests.save)
    assert target.read_text() == "18\n"
    status = file.lstat()
    assert (stat.S_ISREG(status.st_mode), status.st_mode & 0o777) == (True, 0o600)


@as_root
def test_digests_that_another_user_wrote_are_not_believed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Digests, "_RECENT_NANOSECONDS", 0)
    file, source = place / "digests.json", place / "a.sql"
    source.write_text("SELECT 1")
    first = Digests(file)
    first.events(str(source), lambda _: [KNOWN])
    first.save()
    assert Digests(file).events(str(source), lambda _: []) == [KNOWN]
    os.chown(file, SOMEBODY, SOMEBODY)
    assert Digests(file).events(str(source), lambda _: []) == []


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_serials_go_on_without_what_is_no_file_of_ours(
    place: Path, target: Path, kind: str
) -> None:
    put(place / "serials", kind, target)
    assert within(10, lambda: reserve_serials(place / "serials", 7)) == 7
    assert target.read_text() == "18\n"
    assert reserve_serials(place / "serials", 7) > 7


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_no_password_is_derived_from_what_is_no_file_of_ours(
    place: Path, target: Path, kind: str
) -> None:
    put(place / "secret", kind, target)
    with pytest.raises(ConfigError, match="secret cannot be used"):
        within(10, lambda: load_secret(place / "secret"))


def test_a_link_to_nowhere_is_no_place_for_the_secret(place: Path) -> None:
    put(place / "secret", "link", place / "nowhere")
    with pytest.raises(ConfigError, match="secret cannot be used"):
        load_secret(place / "secret")
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_marker_that_is_no_file_of_ours_is_none(place: Path, target: Path, kind: str) -> None:
    target.write_text('{"boot_id": "b", "root": "/root", "password": "p"}')
    put(place / "cluster.json", kind, target)
    assert within(10, lambda: read_marker(place / "cluster.json")) is None


def test_a_file_beyond_its_bounds_is_not_read(target: Path) -> None:
    assert trusted_files.read_own(target, trusted_files.ours(), most=3) == b"18\n"
    with pytest.raises(trusted_files.UntrustedFileError, match="more than 2 bytes"):
        trusted_files.read_own(target, trusted_files.ours(), most=2)


# Places below directories in which any user can create files. -----------------------------------


@as_root
def test_a_storage_root_that_another_user_made_is_an_error_or_not_chosen(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_MEMORY", place)
    monkeypatch.setattr(places, "_memory_has_room", lambda _: True)
    root = choose_storage("memory", place / "state", ME, 1).root
    root.mkdir()
    os.chown(root, SOMEBODY, SOMEBODY)
    with pytest.raises(EmbeddedServerError, match="belongs to another user") as caught:
        prepare(choose_storage("memory", place / "state", ME, 1), ME)
    assert str(root) in str(caught.value)
    assert not choose_storage("auto", place / "state", ME, 1).in_memory
    assert (root.stat().st_uid, list(root.iterdir())) == (SOMEBODY, [])


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_storage_root_that_is_no_directory_is_an_error(
    place: Path, target: Path, kind: str
) -> None:
    put(place / "root", kind, target.parent)
    with pytest.raises(EmbeddedServerError, match="root belongs to another user"):
        within(10, lambda: prepare(Storage(place / "root", in_memory=True), ME))


@as_root
def test_a_socket_directory_of_the_servers_that_another_user_made_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place))
    found = Storage(place / ("long" * 30), in_memory=False)
    assert found.socket.parent == place
    found.socket.mkdir()
    os.chown(found.socket, SOMEBODY, SOMEBODY)
    with pytest.raises(EmbeddedServerError, match="belongs to another user"):
        prepare(found, ME)


def refused(daemon: Daemon) -> str:
    """Start a daemon, and return why it ended with exit code 2."""
    process = daemon.spawn()
    assert process.wait(30) == 2
    return daemon.log.read_text()


@as_root
def test_a_directory_of_another_user_is_no_place_for_the_socket(place: Path) -> None:
    daemon = Daemon(place)
    daemon.socket = place / "theirs" / "clonepool.sock"
    daemon.socket.parent.mkdir()
    os.chown(daemon.socket.parent, SOMEBODY, SOMEBODY)
    said = refused(daemon)
    assert f"{daemon.socket.parent} belongs to another user" in said
    assert list(daemon.socket.parent.iterdir()) == []


def test_a_directory_in_which_any_user_may_replace_the_socket_is_refused(
    place: Path,
) -> None:
    daemon = Daemon(place)
    daemon.socket = place / "open" / "clonepool.sock"
    daemon.socket.parent.mkdir()
    daemon.socket.parent.chmod(0o777)
    assert "any user may" in refused(daemon)
    assert list(daemon.socket.parent.iterdir()) == []


@as_root
def test_a_lock_file_that_another_user_made_is_an_error(place: Path) -> None:
    daemon = Daemon(place)
    lock = place / "clonepool.sock.lock"
    lock.touch()
    os.chown(lock, SOMEBODY, SOMEBODY)
    assert "belongs to another user" in refused(daemon)


def test_a_link_in_the_temporary_directory_is_not_taken_for_the_daemons(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is a stranger's, and what it leads to is root's: /tmp itself, say."""
    monkeypatch.setenv("TMPDIR", str(place))
    (place / "real").mkdir()
    (place / "link").symlink_to(place / "real")
    assert paths.is_trusted(str(place / "real" / "s"))
    if os.geteuid() == 0:
        os.lchown(place / "link", SOMEBODY, SOMEBODY)
        assert not paths.is_trusted(str(place / "link" / "s"))
