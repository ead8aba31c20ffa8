"""Whose a cluster in memory is: its state directory, by name, and whether a daemon uses it now.

A state directory that is deleted takes a cluster on disk with it. One in memory lies elsewhere and
would stay until the machine's next boot, so it says where it belongs.
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


class Whereabouts(StrEnum):
    """What can be seen of a state directory from here."""

    THERE = "there"
    DELETED = "deleted"
    OUT_OF_SIGHT = "out of sight"


class Claim(msgspec.Struct, frozen=True):
    """What a cluster says of its owner.

    Attributes:
        place: the state directory, without links; what is not ASCII as in a URL.
        above: device and inode of the directories above it, the nearest first.
    """

    place: str
    above: tuple[tuple[int, int], ...]

    @property
    def state(self) -> str:
        """The state directory."""
        return os.fsdecode(unquote_to_bytes(self.place))


def claim_of(state: Path) -> Claim:
    """Return what a cluster of this state directory, which is there, is to say."""
    resolved = state.resolve()
    above = tuple(_identity(place.stat()) for place in resolved.parents)
    return Claim(quote(os.fsencode(resolved)), above)


def take(root: Path, claim: Claim) -> int | None:
    """Write the claim into a cluster's root, and hold it for as long as the descriptor is open.

    Returns:
        None when another process holds it, a daemon or one that removes the root, or the root was
        removed just now.

    Raises:
        UntrustedFileError: what lies there is not ours.
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
    """Return what a cluster says of its owner; None when it says nothing that can be believed."""
    try:
        return msgspec.json.decode(trusted_files.read_own(root / CLAIM, {os.geteuid()}), type=Claim)
    except (OSError, msgspec.DecodeError):
        return None


@contextlib.contextmanager
def nobody_else(root: Path) -> Iterator[bool]:
    """Keep every daemon from the cluster meanwhile; False when one uses it, or it went away."""
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


def look_for(claim: Claim) -> Whereabouts:
    """Say whether the state directory was deleted.

    One whose file system is not mounted now, or that is in another container's or behind a
    `PrivateTmp`, is not there either: so the nearest directory above that is there must be the
    very one that was above it when the claim was made.

    Raises:
        OSError: that can't be told.
    """
    state = Path(claim.state)
    for place, identity in zip(state.parents, claim.above, strict=False):
        try:
            status = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if _identity(status) != identity:
            return Whereabouts.OUT_OF_SIGHT
        return Whereabouts.THERE if _is_there(state) else Whereabouts.DELETED
    return Whereabouts.OUT_OF_SIGHT


def _is_there(place: Path) -> bool:
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
