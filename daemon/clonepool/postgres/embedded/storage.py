"""Where the embedded server's data is: in memory if there is enough of it, otherwise on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from clonepool import trusted_files
from clonepool.errors import EmbeddedServerError

if TYPE_CHECKING:
    from clonepool.postgres.embedded.account import Account

MIB = 1024 * 1024
BASE_BYTES = 512 * MIB
CLONE_BYTES = 16 * MIB
"""Room that the storage should have: a base, and this much for each clone."""
LEAST_BYTES = 96 * MIB
"""Room for one clone: an empty cluster takes 42 MiB, the smallest template and a clone 8 MiB each,
and as much WAL."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - what is put there is private
CONTENTS = frozenset(
    (
        *("data", "data.new", "data.old", "socket", "server.log", "owner.json"),
        *("postgresql.conf", "pg_hba.conf", "pg_ident.conf"),
    )
)
"""Names of the files and directories in a storage root."""
_LONGEST_SOCKET_PATH = 107 - len("/.s.PGSQL.65535.lock")
"""Longest directory of a Unix socket, in bytes."""


class Storage(msgspec.Struct, frozen=True):
    """The server's directories."""

    root: Path
    in_memory: bool

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    def owners(self) -> set[int]:
        """Return the ids of the users whose files in the data directory are trusted.

        Only the daemon's user can replace the data directory, so its owner is the server's user.
        """
        with contextlib.suppress(OSError):
            return {self.data.lstat().st_uid, *trusted_files.ours()}
        return trusted_files.ours()

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.root / "server.log"

    @property
    def settings(self) -> Path:
        """The server's postgresql.conf, outside the data directory, in which leases can write."""
        return self.root / "postgresql.conf"

    @property
    def access(self) -> Path:
        """The server's pg_hba.conf."""
        return self.root / "pg_hba.conf"

    @property
    def identities(self) -> Path:
        """The server's pg_ident.conf."""
        return self.root / "pg_ident.conf"

    @property
    def socket(self) -> Path:
        """The directory of the server's Unix socket, short enough for a socket's address."""
        inside = self.root / "socket"
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
            return inside
        return Path(tempfile.gettempdir()) / f"clonepool-pg-{os.geteuid()}-{_digest(self.root)}"


def wanted_bytes(max_clones: int) -> int:
    """Return how much room the storage should have: 512 MiB, and 16 MiB for each clone."""
    return BASE_BYTES + CLONE_BYTES * max_clones


def choose_storage(
    preference: Literal["auto", "memory", "disk"],
    state: Path,
    account: Account,
    max_clones: int,
    floor: int = 0,
) -> Storage:
    """Decide where the data is.

    `auto` means memory if both the memory-backed file system and half of the machine's available
    memory have `wanted_bytes`, and no other user has taken the name there; otherwise disk. A
    cluster that is in memory already stays there, unless there is not even room for one clone.

    Args:
        preference: as configured.
        state: the state directory.
        account: that runs the server.
        max_clones: how many clones there should be room for.
        floor: bytes that must stay free.

    Raises:
        EmbeddedServerError: the data cannot be there.
    """
    memory, disk = roots_of(state)
    if preference == "auto":
        preference = (
            "memory" if _memory_is_better(memory, max_clones, LEAST_BYTES + floor) else "disk"
        )
    if preference == "memory":
        if not _MEMORY.is_dir():
            raise EmbeddedServerError(
                f"embedded.storage is memory, and this machine has no {_MEMORY}",
                remedy='set embedded.storage = "disk"',
            )
        return Storage(memory, in_memory=True)
    if not account.can_enter(state):
        raise EmbeddedServerError(
            f"user {account.name}, who runs PostgreSQL, may not enter {state}",
            remedy="choose another --state, or allow others to enter it (chmod o+x on it and"
            " the directories above)",
        )
    return Storage(disk, in_memory=False)


def root_in_memory(state: Path) -> Path:
    """Return the storage root in memory of a state directory."""
    return _MEMORY / memory_name(os.geteuid(), str(state.resolve()))


def roots_of(state: Path) -> tuple[Path, Path]:
    """Return the two storage roots of a state directory: in memory, on disk."""
    return root_in_memory(state), state / "embedded"


def memory_name(user: int, state: str) -> str:
    """Return the name of the root in memory of a user's state directory, given without links."""
    return f"clonepool-{user}-{_digest_of(state)}"


def check_size(storage: Storage, max_clones: int, floor: int) -> None:
    """Check that the file system is large enough for a cluster and one clone.

    Its size counts, not what is free now: more may become free, and clones wait for that.

    Args:
        storage: where the data is to be.
        max_clones: how many clones there should be room for.
        floor: bytes that must stay free.

    Raises:
        EmbeddedServerError: the file system is too small; says how large it is and should be.
    """
    needed = LEAST_BYTES + floor
    size = _size_of(storage.root.parent)
    if size is None or size >= needed:
        return
    larger = f"{wanted_bytes(max_clones) // MIB} MiB hold pool.max_clones"
    if storage.in_memory:
        remedy = (
            f"make {storage.root.parent} larger (docker run --shm-size; {larger}), or set"
            ' embedded.storage to "disk" or "auto"'
        )
    else:
        remedy = f'choose a --state with more ({larger}), or set embedded.storage to "memory"'
    raise EmbeddedServerError(
        f"no space left for a database cluster and one clone in {storage.root}: its file system has"
        f" {size // MIB} MiB in all, and {needed // MIB} are needed, of which"
        f" {floor // MIB} are to stay free (embedded.min_free_mib)",
        remedy=remedy,
    )


def prepare(storage: Storage, account: Account) -> None:
    """Create the directories; clients can reach the socket.

    The root belongs to the daemon's user, and only directories in it to the account. A lease that
    is a superuser can do whatever the account can, and must not be able to put a link where a
    daemon that runs as root writes.

    Raises:
        EmbeddedServerError: another user owns a directory with that name.
    """
    _own_directory(storage.root, {os.geteuid()}, os.geteuid(), os.getegid())
    _own_directory(storage.socket, {os.geteuid(), account.uid}, account.uid, account.gid)


def _own_directory(directory: Path, owners: set[int], uid: int, gid: int) -> None:
    """Create a directory unless it exists, and give it to a user; links are not followed."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    try:
        descriptor = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise EmbeddedServerError(f"{directory} belongs to another user: {error}") from error
    try:
        status = os.fstat(descriptor)
        owner = status.st_uid
        if owner not in owners:
            raise EmbeddedServerError(
                f"{directory} belongs to another user (user id {owner})",
                remedy="remove it, or choose another --state",
            )
        if (owner, status.st_gid) != (
            uid,
            gid,
        ):  # a sandbox may forbid fchown even if it changes nothing
            os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, 0o711)
    finally:
        os.close(descriptor)


def remove(storage: Storage) -> None:
    """Delete the server's data and log.

    The server's user may put links anywhere in the data at any time. On Linux, rmtree works from
    open directories and follows no links (`shutil.rmtree.avoids_symlink_attacks`).
    """
    shutil.rmtree(storage.data, ignore_errors=True)
    shutil.rmtree(storage.root / "data.new", ignore_errors=True)
    storage.log.unlink(missing_ok=True)


def _size_of(path: Path) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return (found.f_blocks * found.f_frsize) or None


def _memory_is_better(memory: Path, max_clones: int, needed: int) -> bool:
    """Say whether the root in memory exists already, or does not exist and there is room for it."""
    if (_size_of(_MEMORY) or needed) < needed:
        return False
    try:
        return memory.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return _memory_has_room(max_clones)


def _memory_has_room(max_clones: int) -> bool:
    wanted = wanted_bytes(max_clones)
    try:
        free = shutil.disk_usage(_MEMORY).free
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in meminfo.splitlines())
    available = int(fields.get("MemAvailable", "0 kB").split()[0]) * 1024
    return free >= wanted and available // 2 >= wanted


def _digest(path: Path) -> str:
    return _digest_of(str(path.resolve()))


def _digest_of(path: str) -> str:
    return hashlib.blake2s(os.fsencode(path), digest_size=4).hexdigest()
