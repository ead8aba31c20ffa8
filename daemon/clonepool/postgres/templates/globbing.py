"""Finds files by patterns, as `glob` of the standard library, but with errors.

`glob` finds nothing in a directory that cannot be read. Here it is an error if a directory cannot
be read because a resource of the machine is exhausted: what is in it is not known. A directory that
does not exist, is none, or must not be read holds nothing, as in `glob`.
"""

from __future__ import annotations

import os
import re
import stat
from fnmatch import translate
from typing import TYPE_CHECKING

from clonepool import resource_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAGIC = re.compile(r"[*?[]")
_ANY_DEPTH = "**"


def find(pattern: str, directory: Path) -> list[str]:
    """Return the paths that match, in no order; relative to the directory if the pattern is.

    Args:
        pattern: as for `glob.glob` with `recursive`: `**` stands for directories of any depth, and
            names that begin with a dot match only parts that do.
        directory: to which the pattern is relative.

    Raises:
        ResourceError: a resource of the machine is exhausted, so the matches are not known.
    """
    found = ["/" if pattern.startswith("/") else ""]
    parts = [part for part in pattern.split("/") if part]
    for number, part in enumerate(parts, 1):
        inner = number < len(parts)
        found = [path for base in found for path in _step(directory, base, part, inner=inner)]
    return found


def exists(path: str | Path) -> bool:
    """Say whether a path exists; links are followed.

    Raises:
        ResourceError: a resource of the machine is exhausted, so it is not known.
    """
    return _mode(path) != 0


def is_directory(path: str | Path) -> bool:
    """Say whether a path is a directory; links are followed.

    Raises:
        ResourceError: a resource of the machine is exhausted, so it is not known.
    """
    return stat.S_ISDIR(_mode(path))


def is_file(path: str | Path) -> bool:
    """Say whether a path is a regular file; links are followed.

    Raises:
        ResourceError: a resource of the machine is exhausted, so it is not known.
    """
    return stat.S_ISREG(_mode(path))


def _step(root: Path, base: str, part: str, *, inner: bool) -> Iterator[str]:
    """Yield what one part of a pattern matches in one directory; only directories if `inner`."""
    if part == _ANY_DEPTH:
        if is_directory(os.path.join(root, base)):
            yield base
            yield from _below(root, base, inner=inner)
    elif _MAGIC.search(part):
        matches = re.compile(translate(part)).match
        hidden = part.startswith(".")
        for name in _names(root, base, directories=inner):
            if matches(name) and (hidden or not name.startswith(".")):
                yield os.path.join(base, name)
    elif _mode(os.path.join(root, base, part), follow=False):
        yield os.path.join(base, part)


def _below(root: Path, base: str, *, inner: bool) -> Iterator[str]:
    for name in _names(root, base, directories=inner):
        if not name.startswith("."):
            path = os.path.join(base, name)
            yield path
            yield from _below(root, path, inner=inner)


def _names(root: Path, base: str, *, directories: bool) -> list[str]:
    path = os.path.join(root, base)
    try:
        with os.scandir(path) as entries:
            return [each.name for each in entries if not directories or _is_directory_entry(each)]
    except OSError as error:
        _raise_if_exhausted(error, path)
        return []


def _is_directory_entry(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        _raise_if_exhausted(error, entry.path)
        return False


def _mode(path: str | Path, *, follow: bool = True) -> int:
    """Return the mode of a path; 0 if there is nothing, or it must not be seen."""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except (OSError, ValueError) as error:  # ValueError: the path contains a zero byte
        _raise_if_exhausted(error, path)
        return 0


def _raise_if_exhausted(error: Exception, path: str | Path) -> None:
    short = resource_errors.told(error, str(path))
    if short is not None:
        raise short from error
