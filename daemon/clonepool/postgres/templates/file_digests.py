"""What a template is made from: files, in order, and the fingerprint of all that decides."""

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
from clonepool.postgres.templates.psql.scripts import Said  # noqa: TC001 - msgspec looks at it

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BUILD_FORMAT = 6
"""Raised when the builder changes in a way that old generations do not share."""

VERSION = version("clonepool")

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
    """One file: where it is, its name relative to the configuration, SHA-256 of its contents."""

    place: str
    name: str
    digest: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.place)


class _Known(msgspec.Struct):
    """What is remembered of files, in memory and beside the daemon's state.

    Attributes:
        version: of clonepool: another may ask other things about a text.
        digests: by path: size, times, device and inode, and the digest of the contents.
        about: by digest: what was found in the text.
    """

    version: str = ""
    digests: dict[str, tuple[tuple[int, ...], str]] = {}
    about: dict[str, list[Said]] = {}


class Digests:
    """SHA-256 of files, remembered for as long as a file's size, times and inode stay the same.

    So that a check of thousands of unchanged files costs a look at each and not its contents, for
    the next daemon too. The idea is git's index; a file that was written in the very moment when it
    was read is read again.

    Args:
        file: where to remember; None for nowhere.
    """

    _RECENT_NANOSECONDS = 2_000_000_000
    _MOST = 100_000
    """Files to be remembered: beyond that all are forgotten."""
    _MOST_BYTES = 256 * 1024 * 1024

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known = _load(file, self._MOST_BYTES)
        self._changed = False

    def of(self, path: str | Path) -> str:
        """Return a file's digest.

        Raises:
            OSError: it cannot be read.
        """
        digest = self.look(str(path))
        if digest is None:
            raise FileNotFoundError(errno.EISDIR, "is not a file", str(path))
        return digest

    def look(self, place: str) -> str | None:
        """Return the digest of what is there; None when it is no file, such as a directory.

        Raises:
            OSError: it cannot be read.
        """
        status = os.stat(place)
        if not stat.S_ISREG(status.st_mode):
            return None
        times = status.st_mtime_ns, status.st_ctime_ns
        stamp = (status.st_size, *times, status.st_dev, status.st_ino)
        known = self._known.digests.get(place)
        if known is not None and known[0] == stamp:
            return known[1]
        with open(place, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            now = os.fstat(file.fileno())
        quiet = times == (now.st_mtime_ns, now.st_ctime_ns)
        if quiet and _now() - _written(status) > self._RECENT_NANOSECONDS:
            self._known.digests[place] = stamp, digest
            self._changed = True
        return digest

    def about(self, place: str, ask: Callable[[str], list[Said]]) -> list[Said]:
        """Return what `ask` finds in a file's text, which it is asked once.

        Raises:
            OSError: it cannot be read.
        """
        digest, known = self.of(place), self._known.about
        if digest not in known:
            with open(place, "rb") as file:
                content = file.read()
            # It may have been written to since: what is found belongs to what was read.
            digest = hashlib.sha256(content).hexdigest()
            known[digest] = ask(content.decode("utf-8", "replace"))
            self._changed = True
        return known[digest]

    def save(self) -> None:
        """Remember for the next daemon what is new; what cannot be written is found again."""
        if self._file is None or not self._changed:
            return
        self._changed = False
        if len(self._known.digests) > self._MOST:
            self._known.digests.clear()
            self._known.about.clear()
        # Other threads may look at files meanwhile: `list` takes all at once.
        current = {digest for _, digest in list(self._known.digests.values())}
        about = list(self._known.about.items())
        self._known.about = {digest: found for digest, found in about if digest in current}
        with contextlib.suppress(OSError):
            trusted_files.replace_own(self._file, _encoded(self._known))


def _load(file: Path | None, most: int) -> _Known:
    """Return what an earlier daemon of ours remembered, nothing if that cannot be read."""
    if file is not None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            content = trusted_files.read_own(file, trusted_files.ours(), most)
            known = msgspec.json.decode(content, type=_Known)
            if known.version == VERSION:
                return known
    return _Known(VERSION)


def _written(status: os.stat_result) -> int:
    """Return when a file was last written; an mtime that is still to come was set by hand."""
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    return max(mtime, ctime) if mtime <= _now() else ctime


def _encoded(known: _Known) -> bytes:
    """Return what is to be remembered, without files whose names are no text."""
    try:
        return msgspec.json.encode(known)
    except UnicodeEncodeError:
        texts = {place: found for place, found in known.digests.items() if place == shown(place)}
        return msgspec.json.encode(_Known(known.version, texts, known.about))


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
        ResourceError: the machine is short of something, and what is there is not known.
    """
    digests, files = digests or Digests(), []
    for pattern in patterns:
        found = [
            SourceFile(place, _name(place, directory), digest)
            for place in _matches(pattern, directory)
            if (digest := _look(key, place, digests)) is not None
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


def _look(key: str, place: str, digests: Digests) -> str | None:
    try:
        return digests.look(place)
    except FileNotFoundError:
        return None  # a link to nowhere, or gone since
    except OSError as error:
        failure = TemplateFailedError(f"{key}: {place}: {error.strerror}")
        raise resource_errors.told(error, place) or failure from error


def _name(place: str, directory: Path) -> str:
    """Return the name relative to the configuration, of what lies elsewhere the last part."""
    above = os.path.join(directory, "")
    return shown(place[len(above) :] if place.startswith(above) else os.path.basename(place))


def shown(name: str) -> str:
    """Return a file's name as text: it may be of any bytes, JSON and PostgreSQL are not."""
    return name.encode("utf-8", "backslashreplace").decode()


def fingerprint(inputs: Mapping[str, object]) -> str:
    """Return 64 hexadecimal digits that change when anything does that decides the result."""
    whole = {"format": BUILD_FORMAT, **inputs}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def generation_name(full_fingerprint: str) -> str:
    """Return the short form that goes into database names."""
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
