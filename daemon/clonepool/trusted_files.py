"""Reading and replacing files in places where other users may write.

In such a place (the embedded server's data, a directory below /tmp), a name may be a link to
another user's file, or a FIFO, which blocks the process that opens it. A daemon that runs as root
reads such files through this module alone: only regular files of trusted users, and never blocking.
Standard library only, beside `resource_errors`.
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
"""Most bytes that `read_own` reads."""


class UntrustedFileError(PermissionError):
    """The path is not a regular file of a trusted user."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def ours() -> set[int]:
    """Return the user ids that are trusted: this process's own and root's."""
    return {0, os.geteuid()}


def open_own(path: Path, owners: Collection[int]) -> IO[bytes]:
    """Open a regular file for reading; follows no link in the last part of its path, never blocks.

    Args:
        path: the file.
        owners: ids of the users who may own it.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedFileError: it is a link, not a regular file, or another user's.
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
    """Return the contents of a regular file that `open_own` opens.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedFileError: it is a link, not a regular file, another user's, or longer than `most`
            bytes.
        OSError: it cannot be read.
    """
    with open_own(path, owners) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UntrustedFileError(path, f"has more than {most} bytes")
    return content


def replace_own(path: Path, content: bytes) -> None:
    """Replace a file by one that only its owner can read; a link is replaced, not followed.

    Raises:
        OSError: it cannot be written; the former file is still there.
    """
    scratch = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        scratch.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(scratch, flags, 0o600), "wb") as file:
        file.write(content)
    scratch.replace(path)


def unlink_in(directory: Path, prefix: str) -> None:
    """Remove the files in a directory whose names begin with `prefix`; not in subdirectories.

    The directory is opened once, without following a link, and files are removed relative to it:
    its owner could put a link in its place at any time.

    Raises:
        OSError: the machine is short of a resource; nothing was removed.
    """
    try:
        descriptor = os.open(directory, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if resource_errors.shortage(error) is not None:
            raise  # its contents are not known
        return  # there is no such directory, and so no such files
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208 - the path may lead elsewhere by now
            if name.startswith(prefix):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def check_own(path: Path, descriptor: int, owners: Collection[int]) -> None:
    """Check that an open file is a regular file of one of the users.

    Raises:
        UntrustedFileError: it is not.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(path, "is not a regular file")
    if status.st_uid not in owners:
        raise UntrustedFileError(path, f"belongs to another user (id {status.st_uid})")


def is_still(path: Path, descriptor: int) -> bool:
    """Return whether the path still leads to the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False
