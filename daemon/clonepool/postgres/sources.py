"""What a template is made from: its files, in order, and the fingerprint of all that decides."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from typing import TYPE_CHECKING

import msgspec

from clonepool.core.naming import short_digest
from clonepool.errors import TemplateFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BUILD_FORMAT = 3
"""Raised when the builder changes in a way that old generations do not share."""


class SqlFile(msgspec.Struct, frozen=True):
    """One file: where it is, its name relative to the configuration, SHA-256 of its contents."""

    path: Path
    name: str
    digest: str


def resolve(patterns: Iterable[str], directory: Path) -> list[SqlFile]:
    """Return the files that the patterns name: patterns in their order, matches naturally sorted.

    Raises:
        TemplateFailedError: a pattern names nothing, or a file cannot be read.
    """
    files: list[SqlFile] = []
    for pattern in patterns:
        matches = sorted(
            glob.glob(pattern, root_dir=directory, recursive=True),  # noqa: PTH207 - keeps `..` and order
            key=natural_key,
        )
        paths = [directory / match for match in matches]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise TemplateFailedError(
                f"sql: {pattern!r} names no file below {directory}",
                remedy="paths are relative to the configuration file",
            )
        files += [_read(path, directory) for path in found]
    return files


def fingerprint(files: Iterable[SqlFile], facts: Mapping[str, object]) -> str:
    """Return 64 hexadecimal digits that change when any file or fact does.

    Args:
        files: in the order in which they are run.
        facts: what else decides the result, such as the server's major version.
    """
    inputs = {
        "format": BUILD_FORMAT,
        "files": [(file.name, file.digest) for file in files],
        "facts": dict(facts),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def generation_name(full_fingerprint: str) -> str:
    """Return the short form that goes into database names."""
    return short_digest(full_fingerprint.encode())


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key by which 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _read(path: Path, directory: Path) -> SqlFile:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise TemplateFailedError(f"sql: {path}: {error.strerror}") from error
    name = path.relative_to(directory).as_posix() if path.is_relative_to(directory) else path.name
    return SqlFile(path, name, hashlib.sha256(contents).hexdigest())
