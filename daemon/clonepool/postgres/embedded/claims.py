"""Claims: which state directory a cluster in memory belongs to, and whether a daemon uses it.

A cluster on disk is inside its state directory and is deleted with it. A cluster in memory is
elsewhere and would stay until the machine's next boot, so it contains a claim: a file that names
its state directory, and that its daemon keeps locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

import msgspec

from clonepool import trusted_files

if TYPE_CHECKING:
    from collections.abc import Iterator

CLAIM = "owner.json"


class DirectoryState(StrEnum):
    """Whether a state directory exists."""

    EXISTS = "exists"
    DELETED = "deleted"
    NOT_VISIBLE = "not visible"


class Claim(msgspec.Struct, frozen=True):
    """The contents of a claim.

    Attributes:
        place: the state directory without links, percent-encoded.
        above: device and inode of the directories above it, the nearest first.
    """

    place: str
    above: tuple[tuple[int, int], ...]

    @property
    def state(self) -> str:
        """The state directory."""
        return os.fsdecode(unquote_to_bytes(self.place))


def claim_of(state: Path) -> Claim:
    """Return the claim of a state directory that exists."""
    resolved = state.resolve()
    above = tuple(_identity(directory.stat()) for directory in resolved.parents)
    return Claim(quote(os.fsencode(resolved)), above)


def take(root: Path, claim: Claim) -> int | None:
    """Write a claim into a cluster's root, and lock it for as long as the descriptor is open.

    Returns:
        The descriptor. None if another process holds the lock, which may be a daemon or one that
        removes the root, or if the root was just removed.

    Raises:
        UntrustedFileError: another user made the file.
        OSError: it cannot be written.
    """
    path = root / CLAIM
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        trusted_files.check_own(path, descriptor, {os.geteuid()})
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not trusted_files.is_still(path, descriptor):
            os.close(descriptor)
            return None
        content = msgspec.json.encode(claim)
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read(root: Path) -> Claim | None:
    """Return a cluster's claim; None if there is none that can be trusted."""
    try:
        return msgspec.json.decode(trusted_files.read_own(root / CLAIM, {os.geteuid()}), type=Claim)
    except (OSError, msgspec.DecodeError):
        return None


@contextlib.contextmanager
def locked(root: Path) -> Iterator[bool]:
    """Keep other daemons from a cluster within the block; False if it is in use or gone."""
    try:
        file = trusted_files.open_own(root / CLAIM, {os.geteuid()})
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield trusted_files.is_still(root / CLAIM, file.fileno())


def directory_state(claim: Claim) -> DirectoryState:
    """Say whether a state directory was deleted.

    A directory that is in a file system that is not mounted, in another container, or behind a
    `PrivateTmp` cannot be seen either. So a directory counts as deleted only if the nearest
    existing directory above it is the one that was there when the claim was made.

    Raises:
        OSError: it is not known.
    """
    state = Path(claim.state)
    for directory, identity in zip(state.parents, claim.above, strict=False):
        try:
            status = directory.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if _identity(status) != identity:
            return DirectoryState.NOT_VISIBLE
        return DirectoryState.EXISTS if _exists(state) else DirectoryState.DELETED
    return DirectoryState.NOT_VISIBLE


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
