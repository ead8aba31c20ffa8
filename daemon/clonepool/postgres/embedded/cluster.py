"""The cluster on its storage: made by initdb, marked, and judged before it is used again."""

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
"""The daemon's own role, and nobody else's: not one that scripts expect to find and change."""
MAINTENANCE = "clonepool"
"""The daemon's own database, likewise."""
_INITDB_SECONDS = 300
_OTHERWISE = "try another --state or embedded.binaries"
_BUILTIN_PROVIDER_MAJOR = 17
_CHECKSUMS_MAJOR = 18
_PATTERNS_MAJOR = 16


class Marker(msgspec.Struct, frozen=True):
    """What the state directory remembers of a cluster.

    Attributes:
        boot_id: of the kernel under which the data was written.
        root: the storage root.
        superuser: the daemon's own role; in clusters of earlier versions it was one of the leases'.
    """

    boot_id: str
    root: str
    superuser: str = "postgres"


class Judgement(StrEnum):
    """Whether a cluster that lies there can be used."""

    USABLE = "usable"
    MISSING = "missing"
    REBOOTED = "rebooted"
    OUTDATED = "outdated"


@cache
def boot_id() -> str:
    """Return what the kernel calls this boot: asked once, when there are files left to ask with."""
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
        written = trusted_files.read_own(storage.data / "PG_VERSION", storage.owners())
    except (FileNotFoundError, NotADirectoryError, trusted_files.UntrustedFileError):
        return Judgement.MISSING
    if marker.boot_id != boot:
        return Judgement.REBOOTED
    if marker.superuser != SUPERUSER:
        return Judgement.OUTDATED
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
    """Return the marker, or None when there is none of ours that can be read.

    Raises:
        ResourceError: the machine is short of something, and it is not known.
    """
    try:
        return msgspec.json.decode(trusted_files.read_own(path, trusted_files.ours()), type=Marker)
    except OSError as error:
        short = resource_errors.told(error, str(path))
        if short is not None:
            raise short from error  # else the cluster would be taken for nobody's, and deleted
        return None
    except msgspec.DecodeError:
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

    Raises:
        EmbeddedServerError: with initdb's words; a full disk is named as such.
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
    """Rename the data of a server that does not run, so that another cluster can be tried."""
    aside = storage.root / "data.old"
    shutil.rmtree(aside, ignore_errors=True)
    storage.data.rename(aside)
    return aside


def put_back(storage: Storage, aside: Path) -> None:
    """Give the data that was set aside its name again; what took its place is deleted."""
    places.remove(storage)
    aside.rename(storage.data)


def remove_halves(storage: Storage) -> None:
    """Delete what a start that was killed left beside what is a good cluster now."""
    for name in ("data.old", "data.new"):
        shutil.rmtree(storage.root / name, ignore_errors=True)


def access_rules(major: int) -> str:
    """Return pg_hba.conf: who comes in, where to, and how that is proven.

    Passwords go to a Unix socket or to loopback, are random and good for one lease. So they are
    asked for in the clear: that costs least, every driver can, and none refuses, as some do SCRAM
    with fewer iterations than people's passwords need. And PostgreSQL looks the password up only
    when it has been told it: who began to log in as a lease ended can't end that in the next one.
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


def _both(who: str, how: str) -> list[str]:
    return [f"local {who} {how}", f"host {who} 127.0.0.1/32 {how}"]


def identities(user: str) -> str:
    """Return pg_ident.conf: the daemon's own user, and only that, is the daemon's own role.

    Args:
        user: name of the operating system's user that the daemon runs as.
    """
    quoted = user.replace('"', '""')
    return f'# Written by clonepool at each start.\n{SUPERUSER} "{quoted}" {SUPERUSER}\n'


def _run_initdb(target: Path, binaries: Binaries, account: Account) -> None:
    command: list[str | Path] = [binaries.program("initdb"), "--pgdata", target, "--no-sync"]
    command += ["--username", SUPERUSER, "--no-instructions"]
    # Only the daemon's own pg_hba.conf counts; the one that initdb writes lets nobody in.
    command += ["--auth", "reject", "--encoding", "UTF8", "--locale", "C.UTF-8"]
    if binaries.major >= _CHECKSUMS_MAJOR:
        # The data is thrown away before a disk could spoil it. With checksums whoever merely reads
        # a page that was just written would write it to the log, and so seem to have changed it.
        command.append("--no-data-checksums")
    if binaries.major >= _BUILTIN_PROVIDER_MAJOR:
        # No library of the machine decides the sort order: nothing can drift.
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
            remedy="see what the machine and the disk are busy with",
        ) from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise EmbeddedServerError(
            f"it ended {failure_causes.ending(done.returncode)}: {_short(said)}",
            remedy=failure_causes.remedy(said, done.returncode, _OTHERWISE),
        )


def _short(said: str) -> str:
    lines = [line for line in said.splitlines() if "error" in line or "FATAL" in line]
    return "; ".join(lines or said.splitlines()[-3:]) or "it wrote nothing"


def _failure(storage: Storage, error: OSError | EmbeddedServerError) -> EmbeddedServerError:
    places.remove(storage)
    remedy = error.remedy if isinstance(error, EmbeddedServerError) else ""
    remedy = remedy or failure_causes.remedy(str(error), None, _OTHERWISE)
    if "No space left" in str(error) or "Errno 28" in str(error):
        return EmbeddedServerError(
            f"no space left for a database cluster in {storage.root}: {error}", remedy=remedy
        )
    return EmbeddedServerError(f"initdb failed in {storage.root}: {error}", remedy=remedy)
