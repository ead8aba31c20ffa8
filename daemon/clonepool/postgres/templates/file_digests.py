"""The files that a template is made from, their digests, and the fingerprint of all inputs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clonepool import resource_errors, trusted_files
from clonepool.core.naming import short_digest
from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates import globbing
from clonepool.postgres.templates.psql.script_events import ScriptEvent  # noqa: TC001 - for msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BUILD_FORMAT = 6
"""Version of what builds produce; incremented when a build would give another result than
before."""

VERSION = version("clonepool")
"""Version of this package."""

_DATE = (
    "(?:19|20|21)[0-9]{2}[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12][0-9]|3[01])"
    "(?:[-_.T]?[0-2][0-9][-_.:]?[0-5][0-9](?:[-_.:]?[0-9]{2,8})?)?(?![0-9])"
)
"""A day, with or without a time to the microsecond, as in the names of migrations."""
_SHORTEST_DATE = 8
_find_date = re.compile(_DATE).fullmatch
_find_year = re.compile("(?:19|20|21)[0-9]{2}").search
_split_numbers = re.compile("([0-9]+)").split
_split_dates = re.compile(f"({_DATE}|[0-9]+)").split
_MOMENT_DIGITS = 20
"""Digits of a day and a time to the microsecond."""


class SourceFile(msgspec.Struct, frozen=True):
    """One file.

    Attributes:
        location: its path.
        name: relative to the configuration file.
        digest: SHA-256 of its contents.
    """

    location: str
    name: str
    digest: str

    @property
    def path(self) -> Path:
        """Its path."""
        return Path(self.location)


class _Known(msgspec.Struct):
    """What is remembered of files, in memory and in the state directory.

    Attributes:
        version: of clonepool; another version may find other events.
        digests: by path, the file's size, times, device and inode, and the digest of its contents.
        about: by digest, the events of the script with these contents.
    """

    version: str = ""
    digests: dict[str, tuple[tuple[int, ...], str]] = {}
    about: dict[str, list[ScriptEvent]] = {}


class Digests:
    """SHA-256 of files, remembered for as long as a file's size, times and inode stay the same.

    So to check thousands of unchanged files, their contents need not be read, by a later daemon
    neither. This is the idea of git's index: a file that was written shortly before it was read is
    read again, because its times may not change at the next write.

    Args:
        file: in which they are remembered for the next daemon; None for none.
    """

    _RECENT_NANOSECONDS = 2_000_000_000
    """Age of a file's last write below which its digest is not remembered."""
    _MOST = 100_000
    """Number of files beyond which all are forgotten."""
    _MOST_BYTES = 256 * 1024 * 1024
    """Largest file of remembered digests that is read."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known = _load(file, self._MOST_BYTES)
        self._changed = False

    def of(self, path: str | Path) -> str:
        """Return a file's digest.

        Raises:
            OSError: it cannot be read.
        """
        digest = self.find(str(path))
        if digest is None:
            raise FileNotFoundError(errno.EISDIR, "is not a file", str(path))
        return digest

    def find(self, location: str) -> str | None:
        """Return a file's digest; None if there is something else, such as a directory.

        Raises:
            OSError: it cannot be read.
        """
        status = os.stat(location)
        if not stat.S_ISREG(status.st_mode):
            return None
        times = status.st_mtime_ns, status.st_ctime_ns
        stamp = (status.st_size, *times, status.st_dev, status.st_ino)
        known = self._known.digests.get(location)
        if known is not None and known[0] == stamp:
            return known[1]
        with open(location, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            now = os.fstat(file.fileno())
        quiet = times == (now.st_mtime_ns, now.st_ctime_ns)
        if quiet and _now() - _written(status) > self._RECENT_NANOSECONDS:
            self._known.digests[location] = stamp, digest
            self._changed = True
        return digest

    def events(self, location: str, ask: Callable[[str], list[ScriptEvent]]) -> list[ScriptEvent]:
        """Return the events that `ask` finds in a file's text; they are remembered.

        Raises:
            OSError: it cannot be read.
        """
        digest, known = self.of(location), self._known.about
        if digest not in known:
            with open(location, "rb") as file:
                content = file.read()
            # The file may have been written to since its digest was taken.
            digest = hashlib.sha256(content).hexdigest()
            known[digest] = ask(content.decode("utf-8", "replace"))
            self._changed = True
        return known[digest]

    def save(self) -> None:
        """Write what is remembered for the next daemon, if it has changed and can be written."""
        if self._file is None or not self._changed:
            return
        self._changed = False
        if len(self._known.digests) > self._MOST:
            self._known.digests.clear()
            self._known.about.clear()
        # Other threads may add digests at the same time; `list` copies them in one step.
        current = {digest for _, digest in list(self._known.digests.values())}
        about = list(self._known.about.items())
        self._known.about = {digest: found for digest, found in about if digest in current}
        with contextlib.suppress(OSError):
            trusted_files.replace_own(self._file, _encoded(self._known))


def _load(file: Path | None, most: int) -> _Known:
    """Return what an earlier daemon remembered; nothing if that cannot be read."""
    if file is not None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            content = trusted_files.read_own(file, trusted_files.ours(), most)
            known = msgspec.json.decode(content, type=_Known)
            if known.version == VERSION:
                return known
    return _Known(VERSION)


def _written(status: os.stat_result) -> int:
    """Return when a file was last written; an mtime in the future was set by a program."""
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    return max(mtime, ctime) if mtime <= _now() else ctime


def _encoded(known: _Known) -> bytes:
    """Return what is remembered as JSON, without files whose names are no text."""
    try:
        return msgspec.json.encode(known)
    except UnicodeEncodeError:
        texts = {name: found for name, found in known.digests.items() if name == shown(name)}
        return msgspec.json.encode(_Known(known.version, texts, known.about))


def _now() -> int:
    """Return the time of the clock that gives files their times."""
    import time  # noqa: PLC0415 - nothing else here may know the time

    return time.time_ns()


def resolve(
    key: str, patterns: Iterable[str], directory: Path, digests: Digests | None = None
) -> list[SourceFile]:
    """Return the files that patterns name: patterns in their order, matches in natural order.

    Args:
        key: of the configuration, for errors.
        patterns: files, globs, and directories, which stand for all `.sql` files directly in them.
        directory: to which patterns are relative.
        digests: of files; remembers them.

    Raises:
        TemplateFailedError: a pattern names nothing, or a file cannot be read.
        ResourceError: a resource of the machine is exhausted, so the files are not known.
    """
    digests, files = digests or Digests(), []
    for pattern in patterns:
        found = [
            SourceFile(location, _name(location, directory), digest)
            for location in _matches(pattern, directory)
            if (digest := _digest(key, location, digests)) is not None
        ]
        if not found:
            raise TemplateFailedError(
                f"{key}: {pattern!r} names no file below {directory}",
                remedy="paths are relative to the configuration file",
            )
        files += found
    return files


def _matches(pattern: str, directory: Path) -> list[str]:
    if globbing.is_directory(directory / pattern):
        pattern = str(Path(pattern) / "*.sql")
    found = globbing.find(str(Path(pattern)), directory)
    return [os.path.join(directory, match) for match in sorted(found, key=natural_key)]


def _digest(key: str, location: str, digests: Digests) -> str | None:
    try:
        return digests.find(location)
    except FileNotFoundError:
        return None  # a dangling link, or just removed
    except OSError as error:
        failure = TemplateFailedError(f"{key}: {location}: {error.strerror}")
        raise resource_errors.told(error, location) or failure from error


def _name(location: str, directory: Path) -> str:
    """Return a file's name relative to the configuration, or its last part if it is outside."""
    above = os.path.join(directory, "")
    inside = location.startswith(above)
    return shown(location[len(above) :] if inside else os.path.basename(location))


def shown(name: str) -> str:
    """Return a file's name as text, as JSON and PostgreSQL need it; it may contain any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


def fingerprint(inputs: Mapping[str, object]) -> str:
    """Return 64 hexadecimal digits that change with any of the inputs."""
    whole = {"format": BUILD_FORMAT, **inputs}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def generation_name(full_fingerprint: str) -> str:
    """Return the short form of a fingerprint, for names of databases."""
    return short_digest(full_fingerprint.encode())


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return the sort key of a file's name: numbers by their value, dates and times as such.

    2 comes before 10. A date, with or without separators and a time after it, is compared as the
    moment that it names, as migration tools do: 20140924113530 comes before 2017-08-31-093000,
    though it is the larger number.
    """
    if _find_year(name):
        return [(_value(p), "") if n % 2 else (-1, p) for n, p in enumerate(_split_dates(name))]
    return [(int(p), "") if n % 2 else (-1, p) for n, p in enumerate(_split_numbers(name))]


def _value(part: str) -> int:
    """Return a number's value; of a date and time, the digits of a moment, to the microsecond."""
    if len(part) < _SHORTEST_DATE or not _find_date(part):
        return int(part)
    digits = "".join(filter(str.isdigit, part))
    return int(digits.ljust(_MOMENT_DIGITS, "0"))
