"""What a template is made from: files, in order, and the fingerprint of all that decides."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clonepool.core.naming import short_digest
from clonepool.errors import TemplateFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BUILD_FORMAT = 4
"""Raised when the builder changes in a way that old generations do not share."""


class SourceFile(msgspec.Struct, frozen=True):
    """One file: where it is, its name relative to the configuration, SHA-256 of its contents."""

    path: Path
    name: str
    digest: str


class Digests:
    """SHA-256 of files, remembered for as long as a file's size, times and inode stay the same.

    So that a check of thousands of unchanged files costs a look at each and not its contents. The
    idea is git's index; a file that was written in the very moment when it was read is read again.
    """

    _RECENT_NANOSECONDS = 2_000_000_000

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}
        self._about: dict[str, list[tuple[str, str]]] = {}

    def of(self, path: Path) -> str:
        """Return a file's digest.

        Raises:
            OSError: it cannot be read.
        """
        status = os.stat(path)  # noqa: PTH116 - a quarter of what Path.stat costs, thousands of times
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        known = self._known.get(str(path))
        if known is not None and known[0] == stamp:
            return known[1]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            now = os.fstat(file.fileno())
        quiet = stamp[1:3] == (now.st_mtime_ns, now.st_ctime_ns)
        if quiet and _now() - max(stamp[1], stamp[2]) > self._RECENT_NANOSECONDS:
            self._known[str(path)] = stamp, digest
        return digest

    def about(
        self, path: Path, ask: Callable[[str], list[tuple[str, str]]]
    ) -> list[tuple[str, str]]:
        """Return what `ask` finds in a file's text, which it is asked once."""
        digest = self.of(path)
        if digest not in self._about:
            self._about[digest] = ask(path.read_text(encoding="utf-8", errors="replace"))
        return self._about[digest]


def _now() -> int:
    """Return the time by which files are stamped."""
    import time  # noqa: PLC0415 - nothing else here may know the time

    return time.time_ns()


def resolve(
    key: str, patterns: Iterable[str], directory: Path, digests: Digests | None = None
) -> list[SourceFile]:
    """Return the files that the patterns name: patterns in their order, matches naturally sorted.

    Args:
        key: of the configuration, for errors.
        patterns: files, globs, and directories, which stand for all `.sql` files right in them.
        directory: where relative ones begin.
        digests: remembers those of files seen before.

    Raises:
        TemplateFailedError: a pattern names nothing, or a file cannot be read.
    """
    digests, files = digests or Digests(), []
    for pattern in patterns:
        found = [path for path in _matches(pattern, directory) if path.is_file()]
        if not found:
            raise TemplateFailedError(
                f"{key}: {pattern!r} names no file below {directory}",
                remedy="paths are relative to the configuration file",
            )
        files += [_read(key, path, directory, digests) for path in found]
    return files


def _matches(pattern: str, directory: Path) -> list[Path]:
    if (directory / pattern).is_dir():
        pattern = str(Path(pattern) / "*.sql")
    found = glob.glob(pattern, root_dir=directory, recursive=True)  # noqa: PTH207 - keeps `..` and order
    return [directory / match for match in sorted(found, key=natural_key)]


def fingerprint(inputs: Mapping[str, object]) -> str:
    """Return 64 hexadecimal digits that change when anything does that decides the result."""
    whole = {"format": BUILD_FORMAT, **inputs}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def generation_name(full_fingerprint: str) -> str:
    """Return the short form that goes into database names."""
    return short_digest(full_fingerprint.encode())


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _read(key: str, path: Path, directory: Path, digests: Digests) -> SourceFile:
    try:
        digest = digests.of(path)
    except OSError as error:
        raise TemplateFailedError(f"{key}: {path}: {error.strerror}") from error
    name = path.relative_to(directory).as_posix() if path.is_relative_to(directory) else path.name
    return SourceFile(path, name, digest)
