"""The cluster on its storage: made by initdb, marked, and judged before it is used again."""

from __future__ import annotations

import secrets
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clonepool import own_files
from clonepool.errors import EmbeddedServerError
from clonepool.postgres.embedded import storage as places
from clonepool.postgres.passwords import ITERATIONS_OF_RANDOM, scram_verifier
from clonepool.postgres.roles import LEASE_GROUP

if TYPE_CHECKING:
    from clonepool.postgres.embedded.account import Account
    from clonepool.postgres.embedded.binaries import Binaries
    from clonepool.postgres.embedded.storage import Storage

SUPERUSER = "postgres"
_INITDB_SECONDS = 300
_BUILTIN_PROVIDER_MAJOR = 17
HBA = f"""\
# A lease's own role may enter the database of its name and no other.
local sameuser +{LEASE_GROUP} scram-sha-256
host sameuser +{LEASE_GROUP} 127.0.0.1/32 scram-sha-256
local all +{LEASE_GROUP} reject
host all +{LEASE_GROUP} 127.0.0.1/32 reject
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
"""


class Marker(msgspec.Struct, frozen=True):
    """What the state directory remembers of a cluster.

    Attributes:
        boot_id: of the kernel under which the data was written.
        root: the storage root.
        password: the superuser's.
    """

    boot_id: str
    root: str
    password: str


class Judgement(StrEnum):
    """Whether a cluster that lies there can be used."""

    USABLE = "usable"
    MISSING = "missing"
    REBOOTED = "rebooted"


def boot_id() -> str:
    """Return what the kernel calls this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def judge(storage: Storage, marker: Marker | None, binaries: Binaries, boot: str) -> Judgement:
    """Say whether the cluster on the storage can be trusted.

    Data written with fsync off is only known to be whole under the kernel that wrote it: another
    boot id means that the machine went down in between. Nor is one trusted whose version is no
    regular file of the server's: whoever leases may have put a FIFO or a link there.

    Raises:
        EmbeddedServerError: another major version made it.
    """
    if marker is None or marker.root != str(storage.root):
        return Judgement.MISSING
    try:
        written = own_files.read_own(storage.data / "PG_VERSION", storage.owners())
    except (FileNotFoundError, NotADirectoryError, own_files.UntrustedFileError):
        return Judgement.MISSING
    if marker.boot_id != boot:
        return Judgement.REBOOTED
    found = written.decode("ascii", "replace").strip()
    if found != str(binaries.major):
        raise EmbeddedServerError(
            f"{storage.data} was made by PostgreSQL {found}, the binaries in {binaries.directory}"
            f" are {binaries.major}",
            remedy=f"remove {storage.data} (templates are built anew), choose another --state, or"
            " set embedded.binaries",
        )
    return Judgement.USABLE


def read_marker(path: Path) -> Marker | None:
    """Return the marker, or None when there is none of ours that can be read."""
    try:
        return msgspec.json.decode(own_files.read_own(path, own_files.ours()), type=Marker)
    except (OSError, msgspec.DecodeError):
        return None


def write_marker(path: Path, marker: Marker) -> None:
    """Write the marker whole or not at all, readable by its owner alone."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.touch(mode=0o600)
    scratch.write_bytes(msgspec.json.encode(marker))
    scratch.replace(path)


def make(storage: Storage, binaries: Binaries, account: Account, boot: str) -> Marker:
    """Make an empty cluster: under another name first, so that half a cluster is none.

    The old one's marker must be gone before this, or its password would be taken for the new one's.

    Raises:
        EmbeddedServerError: with initdb's words; a full disk is named as such.
    """
    places.remove(storage)
    scratch = storage.root / "data.new"
    password = secrets.token_urlsafe(16)
    password_file = storage.root / "password.new"
    try:
        password_file.unlink(missing_ok=True)
        password_file.touch(mode=0o600)
        # initdb hands on what it reads: the verifier, so that it is not stretched like a person's.
        verifier = scram_verifier(password, ITERATIONS_OF_RANDOM)
        password_file.write_text(verifier, encoding="ascii")
        account.own(password_file)
        scratch.mkdir(mode=0o700)
        account.own(scratch)
        _run_initdb(scratch, password_file, binaries, account)
    except OSError as error:
        raise _failure(storage, str(error)) from error
    except EmbeddedServerError as error:
        raise _failure(storage, str(error)) from error
    finally:
        password_file.unlink(missing_ok=True)
    scratch.rename(storage.data)
    return Marker(boot, str(storage.root), password)


def _run_initdb(target: Path, password_file: Path, binaries: Binaries, account: Account) -> None:
    command: list[str | Path] = [binaries.program("initdb"), "--pgdata", target, "--no-sync"]
    command += ["--username", SUPERUSER, "--pwfile", password_file, "--no-instructions"]
    command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]
    if binaries.major >= _BUILTIN_PROVIDER_MAJOR:
        # No library of the machine decides the sort order: nothing can drift.
        command += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=_INITDB_SECONDS,
        cwd="/",
        **account.popen_arguments(),
    )
    if done.returncode != 0:
        raise EmbeddedServerError((done.stderr or done.stdout).strip())


def _failure(storage: Storage, cause: str) -> EmbeddedServerError:
    places.remove(storage)
    lines = [line for line in cause.splitlines() if "error" in line or "FATAL" in line]
    short = "; ".join(lines or cause.splitlines()[-3:])
    if "No space left" in cause or "Errno 28" in cause:
        return EmbeddedServerError(
            f"no space left for a database cluster in {storage.root}: {short}",
            remedy="free some, or set embedded.storage to the other of memory and disk",
        )
    return EmbeddedServerError(f"initdb failed in {storage.root}: {short}")
