"""Takes back what leases change in the server as a whole.

A digest of the shared catalogs is read with every returned clone. When it has changed, the catalogs
are read and compared with the *baseline*: what there was at the start and what builds have added.

Changes of the baseline are undone at once. Additions were made by a lease, but PostgreSQL does not
record by which. A database or a tablespace belongs to the login that made it. A role is removed
when every lease has ended that may have made it, or when only the returned clone has objects of it.
What cannot be removed is reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec
import structlog

from clonepool import resource_errors, trusted_files
from clonepool.core.clone import State as CloneState
from clonepool.errors import ClonepoolError
from clonepool.postgres import shared_object_reverts, shared_objects

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.core.fleet import Fleet
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.shared_objects import Difference, State

log = structlog.get_logger()

AGAIN_SECONDS = 5.0
"""Seconds until another try to take back what could not be taken back."""
_MOST_BYTES = 1024 * 1024
"""Bytes of the file with the baseline that are read."""
_Key = tuple[shared_objects.Kind, str]
_BEFORE_ROLES = {
    shared_objects.Kind.DATABASE,
    shared_objects.Kind.TABLESPACE,
    shared_objects.Kind.PARAMETER,
}


def _is_role_of_baseline(each: Difference) -> bool:
    return each.entry.kind is shared_objects.Kind.ROLE and not each.is_new


_PASSES = (
    _is_role_of_baseline,
    lambda each: each.entry.kind in _BEFORE_ROLES,
    lambda each: each.entry.kind is shared_objects.Kind.ROLE,
    lambda _: True,
)
"""The order in which changes are taken back: roles of the baseline, whose names occur in all other
entries; then what keeps new roles from being dropped; then new roles; then the rest, of which some
has gone with the roles."""
_MADE_BY_BUILDS = {
    shared_objects.Kind.ROLE,
    shared_objects.Kind.MEMBERSHIP,
    shared_objects.Kind.SETTING,
    shared_objects.Kind.PARAMETER,
}


class _Remembered(msgspec.Struct, frozen=True):
    """What is written for the next daemon: the server, and the keys of the baseline."""

    server: str
    keys: list[str]


class ServerChanges:
    """Compares the server as a whole with its baseline, and restores that.

    Args:
        gateway: the way to the server.
        major: its version.
        fleet: the leases.
        metrics: count the changes.
        path: of the file that tells the next daemon the baseline.
        takes_back: whether changes are taken back. On a server that others use too they are not
            even looked for.
    """

    def __init__(
        self,
        gateway: Gateway,
        major: int,
        fleet: Fleet,
        metrics: Metrics,
        path: Path,
        *,
        takes_back: bool,
    ) -> None:
        self._gateway = gateway
        self._major = major
        self._fleet = fleet
        self._metrics = metrics
        self._path = path
        self._takes_back = takes_back
        self._lock = anyio.Lock()
        self._baseline: State = {}
        self._digest = ""
        self._identity = ""
        self._suspects: dict[_Key, set[str]] = {}
        self._told: set[_Key] = set()
        self._builds: set[str] = set()
        self._again_at = 0.0
        self._unwritten = False

    async def begin(self, system_identifier: int) -> None:
        """Read the present state as the baseline, without what leases of an earlier daemon left.

        That daemon may have been killed before it took it back; it is removed after the first
        lease.
        """
        self._identity = str(system_identifier)
        if self._takes_back:
            async with self._lock:
                found = await shared_objects.read_state(self._gateway, self._major)
                known = self._remembered()
                self._baseline = {
                    key: entry
                    for key, entry in found.items()
                    if known is None or f"{key[0]}:{key[1]}" in known
                }
                self._suspects = {key: set() for key in found.keys() - self._baseline.keys()}
                self._digest = await self._read_digest()
                self._remember()

    @property
    def digest(self) -> str:
        """The digest of the shared catalogs when they were last read."""
        return self._digest

    def enter(self, build: str) -> None:
        """Count a build that begins: additions from now on may be its."""
        self._builds.add(build)

    def leave(self, build: str) -> None:
        """Count a build that ended: what it made was accepted, or has no owner."""
        self._builds.discard(build)
        for suspects in self._suspects.values():
            suspects.discard(build)

    async def accept(self) -> None:
        """Add to the baseline what a build has made: files and dumps make the roles they need.

        A superuser is not accepted while clones are leased: it may have been made by a lease, and
        would be there for all later ones.

        Raises:
            StatementError, ServerUnavailableError: the baseline is as it was.
        """
        if not self._takes_back:
            return
        async with self._lock:
            now = await shared_objects.read_state(self._gateway, self._major)
            found = shared_objects.compare(self._baseline, now)
            accepted = [
                each.entry
                for each in found
                if each.is_new
                and each.entry.kind in _MADE_BY_BUILDS
                and not (each.entry.value.get("rolsuper") and self._out())
                and self._suspects.get((each.entry.kind, each.entry.key), self._builds)
                & self._builds
            ]
            if accepted:
                self._baseline |= {(entry.kind, entry.key): entry for entry in accepted}
                self._remember()

    def _remembered(self) -> set[str] | None:
        """Return the keys of an earlier daemon's baseline; None when it is not known."""
        try:
            found = msgspec.json.decode(
                trusted_files.read_own(self._path, trusted_files.ours(), _MOST_BYTES),
                type=_Remembered,
            )
        except OSError as error:
            short = resource_errors.told(error, str(self._path))
            if short is not None:
                raise short from error
            return None
        except msgspec.DecodeError:
            return None
        return set(found.keys) if found.server == self._identity else None

    def _remember(self) -> None:
        """Write the baseline down; a daemon without it takes all there is as the baseline."""
        keys = sorted(f"{kind}:{key}" for kind, key in self._baseline)
        content = msgspec.json.encode(_Remembered(self._identity, keys))
        try:
            trusted_files.replace_own(self._path, content)
        except OSError as error:
            # The file is out of date: the next daemon would take roles of templates for roles that
            # leases left.
            self._unwritten = resource_errors.shortage(error) is not None
        else:
            self._unwritten = False

    async def look(self, clone: str, digest: str | None) -> list[str]:
        """Undo what a lease changed in the server as a whole; return descriptions of it.

        Args:
            clone: whose lease has ended.
            digest: of the shared catalogs, read after that; None to read it now.

        Raises:
            StatementError, ServerUnavailableError: it is tried again with the next lease.
        """
        if not self._takes_back:
            return []
        async with self._lock:
            if self._unwritten:
                self._remember()
            if digest is None:
                digest = await self._read_digest()
            if digest == self._digest and not self._is_due(clone):
                return []
            return await self._take_back(clone)

    def _is_due(self, clone: str) -> bool:
        """Say whether what is left may be taken back now that this lease, or some time, is over."""
        if any(clone in suspects for suspects in self._suspects.values()):
            return True
        failed = any(not suspects for suspects in self._suspects.values())
        return failed and anyio.current_time() >= self._again_at

    async def _take_back(self, clone: str) -> list[str]:
        for suspects in self._suspects.values():
            suspects.discard(clone)
        told = []
        for is_due in _PASSES:
            now = await shared_objects.read_state(self._gateway, self._major)
            for difference in shared_objects.compare(self._baseline, now):
                if is_due(difference):
                    told += await self._settle(difference, clone)
        left = shared_objects.compare(
            self._baseline, await shared_objects.read_state(self._gateway, self._major)
        )
        keys = {(each.entry.kind, each.entry.key) for each in left}
        self._suspects = {key: who for key, who in self._suspects.items() if key in keys}
        self._told &= keys
        self._again_at = anyio.current_time() + AGAIN_SECONDS
        self._digest = await self._read_digest()
        return told

    async def _settle(self, difference: Difference, clone: str) -> list[str]:
        """Undo one difference if that is allowed; return its description."""
        key = difference.entry.kind, difference.entry.key
        if difference.is_new and await self._is_the_daemons(difference.entry):
            return []
        suspects = self._suspects.setdefault(key, (self._out() | self._builds) - {clone})
        if not await self._may_be_taken_back(difference, clone, suspects):
            return []
        done = await shared_object_reverts.revert(self._gateway, difference)
        if not done and difference.is_new and difference.entry.kind is shared_objects.Kind.ROLE:
            try:
                await shared_object_reverts.disown(self._gateway, difference.entry.name, clone)
            except ClonepoolError as error:
                log.debug("server.role_not_disowned", role=difference.entry.name, error=str(error))
            else:
                done = await shared_object_reverts.revert(self._gateway, difference)
        return self._tell(key, difference, clone, done=done)

    async def _may_be_taken_back(
        self, difference: Difference, clone: str, suspects: set[str]
    ) -> bool:
        """Say whether a difference changes the baseline or was made by a lease that ended."""
        entry = difference.entry
        if not difference.is_new or self._is_of_baseline(entry):
            return True
        if entry.owner:
            owner = await self._owner(entry.owner)
            if owner == clone:
                return True
            if owner in self._out():
                return False
        if not suspects:
            return True
        if entry.kind is not shared_objects.Kind.ROLE or suspects & self._builds:
            return False
        used = await shared_objects.is_used_elsewhere(self._gateway, entry.name, set())
        return used and not await shared_objects.is_used_elsewhere(
            self._gateway, entry.name, {clone}
        )

    async def _is_the_daemons(self, entry: shared_objects.Entry) -> bool:
        """Say whether the daemon's own role made it, as a person with its rights does by hand."""
        return entry.owner != 0 and await self._owner(entry.owner) == self._gateway.endpoint.user

    def _is_of_baseline(self, entry: shared_objects.Entry) -> bool:
        """Say whether a new setting applies to everybody, or to a role of the baseline."""
        if entry.kind is shared_objects.Kind.SYSTEM:
            return True
        if entry.kind is not shared_objects.Kind.SETTING:
            return False
        role = str(entry.value["setrole"])
        return role == "0" or (shared_objects.Kind.ROLE, role) in self._baseline

    async def _owner(self, oid: int) -> str:
        async with self._gateway.control() as session:
            rows = await session.rows("SELECT rolname FROM pg_roles WHERE oid = $1", oid)
        return str(rows[0]["rolname"]) if rows else ""

    def _tell(self, key: _Key, difference: Difference, clone: str, *, done: bool) -> list[str]:
        """Log and count a change once; return it for the client that released the lease."""
        if key in self._told and not done:
            return []
        self._told.add(key)
        outcome = "undone" if done else "left"
        self._metrics.server_changes.labels(outcome).inc()
        log.warning("server.changed_by_lease", clone=clone, what=str(difference), outcome=outcome)
        return [f"{difference}; {'undone' if done else 'left as it is'}"]

    def _out(self) -> set[str]:
        """Return the clones that are leased."""
        pools = self._fleet.pools.values()
        return {name for pool in pools for name in pool.inventory.names(CloneState.LEASED)}

    async def _read_digest(self) -> str:
        async with self._gateway.control() as session:
            return str(await session.value(f"SELECT {shared_objects.digest_sql(self._major)}"))
