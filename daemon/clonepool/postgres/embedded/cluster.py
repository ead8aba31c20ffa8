"""The cluster in the storage: created by initdb, marked, and checked before it is used again."""

from __future__ import annotations

import shutil
import subprocess
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clonepool import resource_errors, trusted_files
from clonepool.core.naming import PREFIX
from clonepool.errors import EmbeddedServerError
from clonepool.postgres.embedded import failure_causes
from clonepool.postgres.embedded import storage as places
from clonepool.postgres.roles import LOGINS, SUPERUSERS

if TYPE_CHECKING:
    from clonepool.postgres.embedded.account import Account
    from clonepool.postgres.embedded.binaries import Binaries
    from clonepool.postgres.embedded.storage import Storage

SUPERUSER = "clonepool"
"""The daemon's own role. It is not `postgres`, which scripts expect to find and may change."""
MAINTENANCE = "clonepool"
"""The daemon's own database, for the same reason."""
_INITDB_SECONDS = 300
"""Time limit of initdb."""
_OTHERWISE = "try another --state or embedded.binaries"
_BUILTIN_PROVIDER_MAJOR = 17
"""First version with the built-in locale provider."""
_CHECKSUMS_MAJOR = 18
"""First version whose initdb enables checksums by default."""
_PATTERNS_MAJOR = 16
"""First version whose pg_hba.conf takes regular expressions for databases."""


class Marker(msgspec.Struct, frozen=True):
    """What the state directory remembers of a cluster.

    Attributes:
        boot_id: of the boot in which the data was written.
        root: the storage root.
        superuser: the daemon's own role; in clusters of earlier versions, leases could use it.
    """

    boot_id: str
    root: str
    superuser: str = "postgres"


class ClusterCheck(StrEnum):
    """Whether the cluster in the storage can be used."""

    USABLE = "usable"
    MISSING = "missing"
    REBOOTED = "rebooted"
    OUTDATED = "outdated"


@cache
def boot_id() -> str:
    """Return the kernel's id of this boot, read once, while file descriptors are available."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def check_cluster(
    storage: Storage, marker: Marker | None, binaries: Binaries, boot: str
) -> ClusterCheck:
    """Say whether the cluster in the storage can be used.

    Data that was written with fsync off may be damaged if the machine has gone down since, which
    another boot id shows. Nor is a cluster trusted whose PG_VERSION is not a regular file of the
    server's user: a lease may have put a FIFO or a link there.

    Raises:
        EmbeddedServerError: another major version made it.
    """
    if marker is None or marker.root != str(storage.root):
        return ClusterCheck.MISSING
    try:
        written = trusted_files.read_own(storage.data / "PG_VERSION", storage.owners())
    except (FileNotFoundError, NotADirectoryError, trusted_files.UntrustedFileError):
        return ClusterCheck.MISSING
    if marker.boot_id != boot:
        return ClusterCheck.REBOOTED
    if marker.superuser != SUPERUSER:
        return ClusterCheck.OUTDATED
    found = written.decode("ascii", "replace").strip()
    if found != str(binaries.major):
        raise EmbeddedServerError(
            f"{storage.data} was made by PostgreSQL {found}, the binaries in {binaries.directory}"
            f" are {binaries.major}",
            remedy=f"remove {storage.data} (templates are rebuilt), choose another --state, or"
            " set embedded.binaries",
        )
    return ClusterCheck.USABLE


def read_marker(path: Path) -> Marker | None:
    """Return the marker; None if there is none that can be read and trusted.

    Raises:
        ResourceError: a resource of the machine is exhausted, so it is not known.
    """
    try:
        return msgspec.json.decode(trusted_files.read_own(path, trusted_files.ours()), type=Marker)
    except OSError as error:
        short = resource_errors.told(error, str(path))
        if short is not None:
            raise short from error  # otherwise the cluster would be deleted
        return None
    except msgspec.DecodeError:
        return None


def write_marker(path: Path, marker: Marker) -> None:
    """Write the marker in one step, readable only by its owner."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.touch(mode=0o600)
    scratch.write_bytes(msgspec.json.encode(marker))
    scratch.replace(path)


def make(storage: Storage, binaries: Binaries, account: Account, boot: str) -> Marker:
    """Create an empty cluster, under another name until it is complete.

    Raises:
        EmbeddedServerError: it failed; says what initdb wrote, or that no space is left.
    """
    places.remove(storage)
    scratch = storage.root / "data.new"
    try:
        scratch.mkdir(mode=0o700)
        account.own(scratch)
        _run_initdb(scratch, binaries, account)
    except (OSError, EmbeddedServerError) as error:
        raise _failure(storage, error) from error
    scratch.rename(storage.data)
    return Marker(boot, str(storage.root), SUPERUSER)


def set_aside(storage: Storage) -> Path:
    """Rename the data of a server that does not run, so that a new cluster can be tried."""
    aside = storage.root / "data.old"
    shutil.rmtree(aside, ignore_errors=True)
    storage.data.rename(aside)
    return aside


def put_back(storage: Storage, aside: Path) -> None:
    """Put back the data that was set aside, and delete what has replaced it."""
    places.remove(storage)
    aside.rename(storage.data)


def remove_scratch(storage: Storage) -> None:
    """Delete what a start that was killed may have left next to the cluster."""
    for name in ("data.old", "data.new"):
        shutil.rmtree(storage.root / name, ignore_errors=True)


def access_rules(major: int) -> str:
    """Return pg_hba.conf.

    Passwords are sent over a Unix socket or loopback, are random, and are valid for one lease. So
    clients send them in clear (`password`): that is the fastest method, and every driver supports
    it, while some refuse SCRAM with few iterations. Also, with this method PostgreSQL looks the
    stored password up after it has received one: a login that was begun before a lease ended cannot
    succeed in the next lease.
    """
    rules = [
        f"local all {SUPERUSER} peer map={SUPERUSER}",
        f"host all {SUPERUSER} 127.0.0.1/32 reject",
        *_both(f"{MAINTENANCE} all", "reject"),
        *_both(f"sameuser +{LOGINS}", "password"),
        *_both(f"all +{LOGINS}", "reject"),
        *_both(f"sameuser +{SUPERUSERS}", "password"),
    ]
    if major >= _PATTERNS_MAJOR:
        rules += _both(f"/^{PREFIX}_ +{SUPERUSERS}", "reject")
    rules += [*_both("replication all", "reject"), *_both("all all", "password")]
    return "\n".join(["# Written by clonepool at each start.", *rules, ""])


def _both(selection: str, method: str) -> list[str]:
    return [f"local {selection} {method}", f"host {selection} 127.0.0.1/32 {method}"]


def identities(user: str) -> str:
    """Return pg_ident.conf, by which only the daemon's user may log in as the daemon's role.

    Args:
        user: name of the operating system's user that runs the daemon.
    """
    quoted = user.replace('"', '""')
    return f'# Written by clonepool at each start.\n{SUPERUSER} "{quoted}" {SUPERUSER}\n'


def _run_initdb(target: Path, binaries: Binaries, account: Account) -> None:
    command: list[str | Path] = [binaries.program("initdb"), "--pgdata", target, "--no-sync"]
    command += ["--username", SUPERUSER, "--no-instructions"]
    # The daemon uses its own pg_hba.conf; the one that initdb writes rejects everybody.
    command += ["--auth", "reject", "--encoding", "UTF8", "--locale", "C.UTF-8"]
    if binaries.major >= _CHECKSUMS_MAJOR:
        # The data does not live long enough to need checksums. With checksums, setting a hint bit
        # while reading is logged, so a page that was only read would seem to have been changed.
        command.append("--no-data-checksums")
    if binaries.major >= _BUILTIN_PROVIDER_MAJOR:
        # The sort order does not depend on a library of the machine, which could be updated.
        command += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INITDB_SECONDS,
            cwd="/",
            **account.popen_arguments(),
        )
    except subprocess.TimeoutExpired:
        raise EmbeddedServerError(
            f"it took longer than {_INITDB_SECONDS} s, and was ended",
            remedy="find out what the machine and the disk are busy with",
        ) from None
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()
        raise EmbeddedServerError(
            f"it ended {failure_causes.ending(done.returncode)}: {_short(output)}",
            remedy=failure_causes.remedy(output, done.returncode, _OTHERWISE),
        )


def _short(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line or "FATAL" in line]
    return "; ".join(lines or output.splitlines()[-3:]) or "it wrote nothing"


def _failure(storage: Storage, error: OSError | EmbeddedServerError) -> EmbeddedServerError:
    places.remove(storage)
    remedy = error.remedy if isinstance(error, EmbeddedServerError) else ""
    remedy = remedy or failure_causes.remedy(str(error), None, _OTHERWISE)
    if "No space left" in str(error) or "Errno 28" in str(error):
        return EmbeddedServerError(
            f"no space left for a database cluster in {storage.root}: {error}", remedy=remedy
        )
    return EmbeddedServerError(f"initdb failed in {storage.root}: {error}", remedy=remedy)
