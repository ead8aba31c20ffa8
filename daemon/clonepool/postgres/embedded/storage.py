"""Where the embedded server's data lies: in memory when there is room for it, else on disk."""

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
LEAST_BYTES = 96 * MIB
"""An empty cluster takes 42 MiB; the least template and one clone of it 8 each, and as much WAL."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - memory-backed is the point; it is made private
CONTENTS = frozenset(
    (
        *("data", "data.new", "data.old", "socket", "server.log", "owner.json"),
        *("postgresql.conf", "pg_hba.conf", "pg_ident.conf"),
    )
)
"""The names that there are in a root."""
_LONGEST_SOCKET_PATH = 107 - len("/.s.PGSQL.65535.lock")


class Storage(msgspec.Struct, frozen=True):
    """The server's directories."""

    root: Path
    in_memory: bool

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    def owners(self) -> set[int]:
        """Return the ids of the users whose files in the data are the server's own.

        The data directory lies in a directory of ours, so it is the one that we gave away.
        """
        with contextlib.suppress(OSError):
            return {self.data.lstat().st_uid, *trusted_files.ours()}
        return trusted_files.ours()

    @property
    def log(self) -> Path:
        """What the server writes."""
        return self.root / "server.log"

    @property
    def settings(self) -> Path:
        """The server's postgresql.conf, outside the data: whoever leases may write there."""
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
        """The directory of the server's Unix socket; short enough for a socket's address."""
        inside = self.root / "socket"
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
            return inside
        return Path(tempfile.gettempdir()) / f"clonepool-pg-{os.geteuid()}-{_digest(self.root)}"


def wanted_bytes(max_clones: int) -> int:
    """Return how much room the server should find: 512 MiB, and 16 MiB for each clone."""
    return BASE_BYTES + CLONE_BYTES * max_clones


def choose_storage(
    preference: Literal["auto", "memory", "disk"],
    state: Path,
    account: Account,
    max_clones: int,
    floor: int = 0,
) -> Storage:
    """Decide where the data goes.

    `auto` means memory when both the memory-backed file system and half of what the machine has
    available hold `wanted_bytes`, and nobody else has taken our name there; the disk otherwise. A
    cluster that lies in memory already stays there, unless it could never have a clone.

    Args:
        preference: of the configuration.
        state: directory for what outlives the daemon.
        account: who runs the server.
        max_clones: how many clones there should be room for.
        floor: bytes that are to stay free.

    Raises:
        EmbeddedServerError: the chosen place cannot be used.
    """
    memory, disk = places_of(state)
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


def place_in_memory(state: Path) -> Path:
    """Return where the cluster of a state directory lies when it lies in memory."""
    return _MEMORY / memory_name(os.geteuid(), str(state.resolve()))


def places_of(state: Path) -> tuple[Path, Path]:
    """Return the two places where the cluster of a state directory can be: in memory, on disk."""
    return place_in_memory(state), state / "embedded"


def memory_name(user: int, state: str) -> str:
    """Return what the cluster of a user's state directory, given without links, is called."""
    return f"clonepool-{user}-{_digest_of(state)}"


def check_size(storage: Storage, max_clones: int, floor: int) -> None:
    """See that one clone can be made at all: a server that starts and has none is of no use.

    What is free now does not count: others may give some back, and clones wait for that.

    Args:
        storage: where the data is to be.
        max_clones: how many clones there should be room for.
        floor: bytes that are to stay free.

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
    """Make the directories; clients pass through to the socket.

    The root stays the daemon's own and only what is in it is given to the account: who leases is
    a superuser there, can do what the account can, and must not be able to put a link where a
    daemon that is root will write.

    Raises:
        EmbeddedServerError: somebody else owns a directory of that name.
    """
    _own_directory(storage.root, {os.geteuid()}, os.geteuid(), os.getegid())
    _own_directory(storage.socket, {os.geteuid(), account.uid}, account.uid, account.gid)


def _own_directory(directory: Path, owners: set[int], uid: int, gid: int) -> None:
    """Make the directory unless it exists, and give it to somebody; follows no link."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    try:
        descriptor = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise EmbeddedServerError(f"{directory} belongs to somebody else: {error}") from error
    try:
        status = os.fstat(descriptor)
        owner = status.st_uid
        if owner not in owners:
            raise EmbeddedServerError(
                f"{directory} belongs to somebody else (user id {owner})",
                remedy="remove it, or choose another --state",
            )
        if (owner, status.st_gid) != (uid, gid):  # a sandbox may forbid even what changes nothing
            os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, 0o711)
    finally:
        os.close(descriptor)


def remove(storage: Storage) -> None:
    """Delete what the server had, and nothing that is not ours by its name.

    Its user may put links anywhere in the data, at any time: on Linux rmtree works from opened
    directories and follows none (`shutil.rmtree.avoids_symlink_attacks`).
    """
    shutil.rmtree(storage.data, ignore_errors=True)
    shutil.rmtree(storage.root / "data.new", ignore_errors=True)
    storage.log.unlink(missing_ok=True)


def _size_of(place: Path) -> int | None:
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    return (found.f_blocks * found.f_frsize) or None


def _memory_is_better(memory: Path, max_clones: int, needed: int) -> bool:
    """Say whether our place in memory is in use already, or is free and has the room."""
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
