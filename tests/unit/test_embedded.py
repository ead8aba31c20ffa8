from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from clonepool.errors import EmbeddedServerError
from clonepool.postgres.embedded import cluster, storage
from clonepool.postgres.embedded.account import Account, choose_account
from clonepool.postgres.embedded.binaries import Binaries, find_binaries
from clonepool.postgres.embedded.cluster import SUPERUSER, ClusterCheck, Marker, check_cluster
from clonepool.postgres.embedded.postmaster import find_running
from clonepool.postgres.embedded.settings import render, shared_buffers_mib
from clonepool.postgres.embedded.storage import Storage, choose_storage

ME = Account("me", os.geteuid(), os.getegid(), switch=False)
GIB = 1024**3


def settings(**changes: object) -> str:
    arguments: dict[str, object] = {
        "major": 18,
        "memory_bytes": 8 * GIB,
        "max_connections": 100,
        "socket": Path("/s"),
        "port": 0,
        "overrides": {},
    }
    return render(**(arguments | changes))  # type: ignore[arg-type]


def test_without_a_port_nothing_listens_on_tcp() -> None:
    assert "listen_addresses = ''" in settings()
    assert "listen_addresses = '127.0.0.1'" in settings(port=6000)


def test_what_the_configuration_sets_wins() -> None:
    text = settings(overrides={"fsync": "on", "x.y": "it's"})
    assert "fsync = 'on'" in text
    assert "fsync = 'off'" not in text
    assert "x.y = 'it''s'" in text


def test_an_older_server_gets_no_setting_that_it_does_not_know() -> None:
    assert "io_method" not in settings(major=17)
    assert "scram_iterations" not in settings(major=15)


@pytest.mark.parametrize(("gib", "mib"), [(1, 64), (8, 128), (512, 256)])
def test_buffers_follow_the_memory_within_bounds(gib: int, mib: int) -> None:
    assert shared_buffers_mib(gib * GIB) == mib


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(storage, "_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    return tmp_path


@pytest.mark.parametrize(("has_room", "in_memory"), [(True, True), (False, False)])
def test_data_lies_in_memory_when_there_is_room_and_on_disk_otherwise(
    room: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool, in_memory: bool
) -> None:
    monkeypatch.setattr(storage, "_memory_has_room", lambda _: has_room)
    assert choose_storage("auto", room / "state", ME, 10).in_memory is in_memory


def test_memory_that_can_never_hold_a_clone_is_refused_with_the_figures(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's /dev/shm has 64 MiB unless it is told otherwise."""
    monkeypatch.setattr(storage, "_size_of", lambda _: 64 * storage.MIB)
    with pytest.raises(EmbeddedServerError, match=r"64 MiB in all, and 352 are needed") as caught:
        storage.check_size(Storage(room / "shm" / "x", in_memory=True), 32, 256 * storage.MIB)
    assert "docker run --shm-size; 1024 MiB hold" in caught.value.remedy
    assert '"disk"' in caught.value.remedy


@pytest.mark.parametrize("used_before", [True, False])
def test_memory_that_can_never_hold_a_clone_is_left_for_the_disk_by_auto(
    room: Path, monkeypatch: pytest.MonkeyPatch, used_before: bool
) -> None:
    small = {room / "shm": 64 * storage.MIB}
    monkeypatch.setattr(storage, "_size_of", small.get)
    monkeypatch.setattr(storage, "_memory_has_room", lambda _: True)
    if used_before:
        storage.root_in_memory(room / "state").mkdir()
    assert not choose_storage("auto", room / "state", ME, 32).in_memory


def test_room_means_the_clones_and_half_a_gibibyte() -> None:
    assert storage.wanted_bytes(32) == GIB


def test_a_stranger_who_took_the_place_is_noticed(place: Path) -> None:
    (place / "root").symlink_to(place)
    with pytest.raises(EmbeddedServerError, match="belongs to another user"):
        storage.prepare(Storage(place / "root", in_memory=True), ME)


def test_what_is_ours_already_is_not_given_to_us_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit's filter of system calls forbids it for files of any owner."""

    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.fchown", forbidden)
    storage.prepare(Storage(place / "root", in_memory=True), ME)
    storage.prepare(Storage(place / "root", in_memory=True), ME)


def test_a_socket_directory_too_long_for_an_address_is_replaced_by_a_short_one() -> None:
    assert len(str(Storage(Path("/" + "x" * 200), in_memory=False).socket)) < 90


def made(place: Path, version: str = "18") -> Storage:
    place_of = Storage(place, in_memory=False)
    place_of.data.mkdir()
    (place_of.data / "PG_VERSION").write_text(f"{version}\n")
    return place_of


def test_a_cluster_of_this_boot_is_used_again(tmp_path: Path) -> None:
    found = made(tmp_path)
    marker = Marker("boot", str(tmp_path), SUPERUSER)
    assert check_cluster(found, marker, Binaries(Path("/b"), 18), "boot") is ClusterCheck.USABLE


def test_after_a_reboot_data_written_without_fsync_is_not_trusted(tmp_path: Path) -> None:
    found = made(tmp_path)
    marker = Marker("boot", str(tmp_path), SUPERUSER)
    assert (
        check_cluster(found, marker, Binaries(Path("/b"), 18), "another") is ClusterCheck.REBOOTED
    )


def test_a_cluster_without_its_marker_is_none(tmp_path: Path) -> None:
    assert (
        check_cluster(made(tmp_path), None, Binaries(Path("/b"), 18), "boot")
        is ClusterCheck.MISSING
    )


def test_a_cluster_of_another_major_version_is_an_error_with_both_versions(tmp_path: Path) -> None:
    found = made(tmp_path, "17")
    marker = Marker("boot", str(tmp_path), SUPERUSER)
    with pytest.raises(EmbeddedServerError, match=r"made by PostgreSQL 17.* are 18") as caught:
        check_cluster(found, marker, Binaries(Path("/b"), 18), "boot")
    assert f"remove {found.data}" in caught.value.remedy


def test_the_marker_is_for_its_owner_alone_and_comes_back_as_it_was(tmp_path: Path) -> None:
    marker = Marker("boot", "/root", SUPERUSER)
    cluster.write_marker(tmp_path / "m", marker)
    assert cluster.read_marker(tmp_path / "m") == marker
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600


def test_a_damaged_marker_is_none(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("{")
    assert cluster.read_marker(tmp_path / "m") is None


@pytest.mark.parametrize("content", ["", "not a number\n", "{dead}\n", "{stranger}\n"])
def test_a_stale_postmaster_pid_is_removed(tmp_path: Path, content: str) -> None:
    found = made(tmp_path)
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    text = content.format(dead=ended.pid, stranger=os.getpid())
    (found.data / "postmaster.pid").write_text(text)
    assert find_running(found) is None
    assert not (found.data / "postmaster.pid").exists()


def test_binaries_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="no postgres and initdb in"):
        find_binaries(str(tmp_path), ME, tmp_path)


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho postgres: error while loading shared libraries: libzstd.so.1:"
            " cannot open shared object file: No such file or directory >&2\nexit 127\n"
        )
        (tmp_path / name).chmod(0o755)
    with pytest.raises(EmbeddedServerError, match="loading shared libraries") as caught:
        find_binaries(str(tmp_path), ME, tmp_path)
    assert caught.value.remedy == "install the package that has libzstd.so.1"


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"clonepool", "postgres", "nobody"}, "clonepool"),
        ({"postgres", "nobody"}, "nobody"),
        ({"postgres"}, None),
    ],
)
def test_root_runs_the_server_as_a_user_that_owns_nothing(
    monkeypatch: pytest.MonkeyPatch, there: set[str], chosen: str | None
) -> None:
    """As Debian's postgres, programs started by leases would own the machine's clusters."""

    def find(name: str) -> pwd.struct_passwd:
        if name not in there:
            raise KeyError(name)
        return pwd.struct_passwd((name, "x", 7, 7, "", "/", "/bin/false"))

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("pwd.getpwnam", find)
    if chosen is None:
        with pytest.raises(EmbeddedServerError, match=r"embedded\.user"):
            choose_account("")
    else:
        assert choose_account("").name == chosen
    assert choose_account("postgres").name == "postgres"


def test_a_server_cannot_be_run_as_a_user_that_does_not_exist() -> None:
    with pytest.raises(EmbeddedServerError, match=r"embedded\.user"):
        choose_account("no-such-user-here")
