"""Files that only we, or those we name, may have written: read and replaced without surprises.

Where another user may write (the embedded server's own data, a directory below /tmp), a name may
stand for a link to a file of somebody else's, or for a FIFO, which blocks whoever opens it. What a
daemon that may be root reads from such places goes through here. Standard
library only, beside what tells a shortage from an answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import IO, TYPE_CHECKING

from clonepool import resource_errors

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

MOST_BYTES = 65_536


class UntrustedFileError(PermissionError):
    """What lies there is not the regular file of the right user that it should be."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def ours() -> set[int]:
    """Return the user ids that we trust like ourselves: our own and root's."""
    return {0, os.geteuid()}


def open_own(path: Path, owners: Collection[int]) -> IO[bytes]:
    """Open a regular file for reading; follows no link in its last part, and never blocks.

    Args:
        path: of the file.
        owners: ids of the users whose file it may be.

    Raises:
        FileNotFoundError: there is none.
        UntrustedFileError: it is a link, no regular file, or another user's.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UntrustedFileError(path, "is a link") from error
        if error.errno == errno.ENXIO:
            raise UntrustedFileError(path, "is not a regular file") from error
        raise
    try:
        check_own(path, descriptor, owners)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_own(path: Path, owners: Collection[int], most: int = MOST_BYTES) -> bytes:
    """Return what is in a regular file, as `open_own` opens it.

    Raises:
        FileNotFoundError: there is none.
        UntrustedFileError: it is a link, no regular file, another user's, or has more bytes than
            `most`.
        OSError: it cannot be read.
    """
    with open_own(path, owners) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UntrustedFileError(path, f"has more than {most} bytes")
    return content


def replace_own(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, for its owner alone; replaces a link, follows none.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    scratch = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        scratch.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(scratch, flags, 0o600), "wb") as file:
        file.write(content)
    scratch.replace(path)


def unlink_in(directory: Path, prefix: str) -> None:
    """Remove the files right in a directory whose names begin so.

    The directory is opened once, without following a link, and the names are removed in what was
    opened: its owner may put a link in its place at any time.

    Raises:
        OSError: the machine is short of something; nothing was removed.
    """
    try:
        descriptor = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if resource_errors.shortage(error) is not None:
            raise  # what is in it is not known
        return  # it is not there, or is no directory: nothing of ours is in it
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208 - a path could be another place by now
            if name.startswith(prefix):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def check_own(path: Path, descriptor: int, owners: Collection[int]) -> None:
    """See that what was opened under that name is a regular file of one of the users.

    Raises:
        UntrustedFileError: it is not.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(path, "is not a regular file")
    if status.st_uid not in owners:
        raise UntrustedFileError(path, f"belongs to another user (id {status.st_uid})")


def is_still(path: Path, descriptor: int) -> bool:
    """Say whether the name still stands for what was opened."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False
