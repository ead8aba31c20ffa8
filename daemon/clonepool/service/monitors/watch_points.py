"""The directories in which a change may alter what a path or a pattern names.

A path is followed as the kernel follows it, component by component and through every link, and each
directory on the way is noted with the names in it that matter. So a directory that is replaced, a
link that is switched and a name that does not exist yet are all changes in an existing directory.
Blocks for as long as the file system does: for threads.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

from clonepool import resource_errors

_MOST_LINKS = 40
"""Links that the kernel follows in one path."""


class Inode(NamedTuple):
    """What tells a directory from another one that takes its place."""

    device: int
    inode: int


class Places:
    """The directories to be watched, without links in their paths, and what matters in each."""

    def __init__(self) -> None:
        self._directories: dict[str, Inode] = {}
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        self._patterns: defaultdict[str, set[str]] = defaultdict(set)
        self._deep: set[str] = set()
        """Directories in which any new directory matters."""
        self._entered: dict[str, str | None] = {}
        self._heads: dict[str, str | None] = {}
        self._listed: dict[str, dict[str, bool]] = {}
        self._globbed: set[tuple[str, ...]] = set()
        self._note("/")

    @property
    def watched(self) -> dict[str, Inode]:
        """The directories in which something matters."""
        return {
            path: identity
            for path, identity in self._directories.items()
            if path in self._names or path in self._patterns or path in self._deep
        }

    def add_file(self, place: str) -> None:
        """Note the directories on the way to a file, whether the file exists or not.

        Args:
            place: an absolute path.
        """
        head, _, name = place.rpartition("/")
        if head not in self._heads:
            self._heads[head] = self._walk("/", head.split("/"))
        here = self._heads[head]
        if here in self._directories:
            self._enter(here, name)

    def add_pattern(self, directory: str, pattern: str, within: str) -> None:
        """Note the directories in which files may begin or cease to match a pattern.

        Args:
            directory: an absolute path that a relative pattern starts from.
            pattern: as for `glob`, or the path of a file or directory.
            within: the files that matter in a directory that `pattern` names, such as `*.sql`.
        """
        base = self._walk("/", directory.split("/"))
        start = "/" if pattern.startswith("/") else base
        if start is None:
            return
        parts = [part for part in pattern.split("/") if part]
        is_directory = os.path.isdir(os.path.join(directory, pattern))
        whole = self._walk(start, parts) if is_directory else None
        if whole in self._directories:
            self._glob(whole, (within,))
        else:
            self._glob(start, (*parts, within) if not glob.has_magic(pattern) else tuple(parts))

    def matters(self, path: str) -> bool:
        """Say whether a change of this path may change what was added."""
        head, _, name = path.rpartition("/")
        head = head or "/"
        if name in self._names.get(head, ()):
            return True
        if any(_compiled(pattern).match(name) for pattern in self._patterns.get(head, ())):
            return True
        return head in self._deep and not name.startswith(".") and os.path.isdir(path)

    def _walk(self, start: str, parts: list[str], links: int = _MOST_LINKS) -> str | None:
        """Return what a path leads to, without links; None if there is nothing yet."""
        here: str | None = start
        for part in parts:
            if here not in self._directories:
                return None
            here = self._enter(here, part, links)
        return here

    def _enter(self, directory: str, name: str, links: int = _MOST_LINKS) -> str | None:
        """Return what a name in a directory leads to."""
        if name in ("", "."):
            return directory
        if name == "..":
            return directory.rpartition("/")[0] or "/"
        path = f"{directory.rstrip('/')}/{name}"
        if path not in self._entered:
            self._names[directory].add(name)
            self._entered[path] = None  # for links that lead to themselves
            self._entered[path] = self._find(directory, path, links)
        return self._entered[path]

    def _find(self, directory: str, path: str, links: int) -> str | None:
        mode = self._note(path)
        if not stat.S_ISLNK(mode):
            return path if mode else None
        try:
            target = os.readlink(path)
        except OSError:
            return None
        start = "/" if target.startswith("/") else directory
        return self._walk(start, target.split("/"), links - 1) if links else None

    def _note(self, path: str) -> int:
        """Return the mode of what a path names, 0 if nothing; keep the identity of a directory."""
        try:
            status = os.lstat(path)
        except OSError:
            return 0
        if stat.S_ISDIR(status.st_mode):
            self._directories[path] = Inode(status.st_dev, status.st_ino)
        return status.st_mode

    def _glob(self, here: str, parts: tuple[str, ...]) -> None:
        """Follow a pattern from a directory on as `glob` does; loops of links are followed once."""
        if (here, *parts) in self._globbed:
            return
        self._globbed.add((here, *parts))
        part, *rest = parts
        if part == "**":
            self._deep.add(here)
            self._glob(here, tuple(rest) or ("*",))
            names, rest = (
                [name for name, branches in self._list(here).items() if branches],
                [*parts],
            )
        elif glob.has_magic(part):
            self._patterns[here].add(part)
            names = fnmatch.filter(self._list(here), part)
        else:
            names = [part]
        for name in names:
            if name.startswith(".") and not part.startswith("."):
                continue
            below = self._enter(here, name)
            if rest and below in self._directories:
                self._glob(below, tuple(rest))

    def _list(self, directory: str) -> dict[str, bool]:
        """Return the names in a directory, and whether each may lead to another directory."""
        if directory not in self._listed:
            try:
                with os.scandir(directory) as entries:
                    found = {each.name: each.is_symlink() or each.is_dir() for each in entries}
            except OSError as error:
                if short := resource_errors.told(error, directory):
                    raise short from error  # not an empty directory
                found = {}
            self._listed[directory] = found
        return self._listed[directory]


@lru_cache(1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))
