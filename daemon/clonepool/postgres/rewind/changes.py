"""What a lease changed: two surveys of a clone compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.pristine import read_digests
from clonepool.postgres.rewind.survey import read_line

if TYPE_CHECKING:
    from collections.abc import Set

    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.pristine import Pristine, Table
    from clonepool.postgres.rewind.survey import Line, Survey

_BEFORE_COUNTS = 4
"""Of a relation's state, how many numbers stand before what was inserted, updated and deleted."""
_BEFORE_FROZEN = 8
"""Of a relation's state, how many numbers stand before its all-frozen pages."""


class Attempts(NamedTuple):
    """How often something was tried with rows, rolled back or not."""

    inserted: int
    updated: int
    deleted: int


class Changes(msgspec.Struct, frozen=True):
    """What is to be undone.

    Attributes:
        tables: whose rows are not those of the template, or may not be.
        attempts: by OID, how often a row was tried to be inserted, updated and deleted, for tables
            whose file is the old one, and was not vacuumed.
        rolled_back: whether a transaction was rolled back, or VACUUM given up on its way.
        toasted: OIDs of tables whose values stored apart were changed.
        locked: tables of which rows were locked and nothing else.
        grown: OIDs of tables that have more pages than the planner believes.
        sizes: by OID, in bytes without TOAST, of relations that were touched or look other.
        estimates: whether the planner believes other sizes of relations.
        catalogs: names of those that were written to, and say what they said.
        sequences: by OID, last value and whether it was called, as they are to be again.
    """

    tables: list[Table]
    attempts: dict[int, Attempts]
    rolled_back: bool
    toasted: set[int]
    locked: list[Table]
    grown: set[int]
    sizes: dict[int, int]
    estimates: bool
    catalogs: list[str]
    sequences: dict[int, tuple[int, bool]]

    @property
    def nothing(self) -> bool:
        """Whether the lease only read."""
        return not (self.tables or self.locked or self.estimates or self.catalogs or self.sequences)


async def find_changes(
    session: Session, pristine: Pristine, before: Survey, now: Survey, unsettled: Set[int]
) -> Changes:
    """Compare a clone with what it was when it was clean.

    Args:
        session: to the clone.
        pristine: what it should hold.
        before: how it looked when it was clean.
        now: how it looks.
        unsettled: relations that may have changed without a sign.

    Raises:
        CannotRewindError: something changed that cannot be undone, or is not understood.
    """
    was, found = _lines(before.lines - now.lines), _lines(now.lines - before.lines)
    if was.keys() != found.keys():
        raise CannotRewindError("there are other relations than before")
    sequences = {oid: was.pop(oid).value for oid in was.keys() & pristine.values.keys()}
    for oid in sequences:
        del found[oid]
    changed = unsettled | {oid for oid in was if _rows(was[oid]) != _rows(found[oid])}
    catalogs = {pristine.catalogs[oid] for oid in changed & pristine.catalogs.keys()}
    await _check_catalogs(session, pristine, catalogs)
    owners = {pristine.owner_of_toast.get(oid, oid) for oid in changed - set(pristine.catalogs)}
    strange = owners - set(pristine.tables)
    if strange:
        raise CannotRewindError(f"relations that the template does not have: {sorted(strange)}")
    seen = owners & was.keys() - unsettled
    locked = {oid for oid in seen if _only_locked(was[oid], found[oid])}
    tables = [pristine.tables[oid] for oid in sorted(owners - locked)]
    for table in tables:
        if table.obstacle:
            raise CannotRewindError(f"{table.name} was changed, and {table.obstacle}")
    return Changes(
        tables=tables,
        attempts={
            oid: attempts
            for oid in owners & was.keys()
            if (attempts := _attempts(was[oid], found[oid])) is not None
        },
        rolled_back=now.rollbacks != before.rollbacks,
        toasted={pristine.owner_of_toast[oid] for oid in changed & pristine.owner_of_toast.keys()},
        locked=[pristine.tables[oid] for oid in sorted(locked)],
        grown={oid for oid, line in found.items() if line.grown},
        sizes={oid: line.size for oid, line in found.items()},
        estimates=now.estimates != before.estimates,
        catalogs=sorted(catalogs),
        sequences=sequences,
    )


def _lines(lines: frozenset[bytes]) -> dict[int, Line]:
    return {line.oid: line for line in map(read_line, lines)}


async def _check_catalogs(session: Session, pristine: Pristine, catalogs: set[str]) -> None:
    """See that catalogs that were written to say what they said: temporary tables come and go."""
    found = await read_digests(session, pristine.digest_sql, catalogs)
    other = sorted(name for name, digest in found.items() if digest != pristine.digests[name])
    if other:
        raise CannotRewindError(f"the catalog was changed: {', '.join(other)}")


def _rows(line: Line) -> tuple[str, int]:
    return line.state, line.size


def _attempts(before: Line, now: Line) -> Attempts | None:
    """Return what was tried, if neither a new file nor VACUUM hides which pages were touched."""
    was, found = before.state.split(","), now.state.split(",")
    if was[:_BEFORE_COUNTS] != found[:_BEFORE_COUNTS] or now.size < before.size:
        return None
    counts = slice(_BEFORE_COUNTS, _BEFORE_COUNTS + 3)
    return Attempts(*(int(b) - int(a) for a, b in zip(was[counts], found[counts], strict=True)))


def _only_locked(before: Line, now: Line) -> bool:
    """Say whether all that changed is that fewer pages are frozen.

    A row that is locked takes this bit from its page, one that is written takes both.
    """
    *rest, frozen = before.state.split(",")
    *rest_now, frozen_now = now.state.split(",")
    same = rest == rest_now and before.size == now.size
    return same and len(rest) == _BEFORE_FROZEN and frozen != frozen_now
