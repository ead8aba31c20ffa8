"""What differs between two surveys, and putting it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import ClonepoolError
from clonepool.postgres.rewind.pristine import STATISTICS, read_digests
from clonepool.postgres.rewind.survey import NO_LEFTOVERS

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.pristine import Pristine, Table
    from clonepool.postgres.rewind.survey import Survey


class CannotRewindError(ClonepoolError):
    """The clone cannot provably be made good in place; it is to be recreated."""

    code = "cannot_rewind"


class LeftoversError(CannotRewindError):
    """Something that outlives sessions is to be cleared away first."""


class Changes(msgspec.Struct, frozen=True):
    """What is to be undone.

    Attributes:
        tables: whose rows are not those of the template, or may not be.
        analyzed: tables whose statistics are others.
        sequences: by OID, what they are to say again.
    """

    tables: list[Table]
    analyzed: list[Table]
    sequences: dict[int, tuple[int, bool]]

    @property
    def nothing(self) -> bool:
        """Whether the lease only read."""
        return not self.tables and not self.analyzed and not self.sequences


async def find_changes(
    session: Session, pristine: Pristine, before: Survey, now: Survey
) -> Changes:
    """Compare a clone with what it was when it was clean.

    Raises:
        CannotRewindError: something changed that cannot be undone, or is not understood.
    """
    _check_database(before, now)
    changed = {
        oid
        for oid in before.relations.keys() | now.relations.keys()
        if _state(before, oid) != _state(now, oid)
    }
    catalogs = {pristine.catalogs[oid] for oid in changed if oid in pristine.catalogs}
    await _check_catalogs(session, pristine, catalogs)
    owners = {pristine.owner_of_toast.get(oid, oid) for oid in changed - set(pristine.catalogs)}
    strange = owners - set(pristine.tables)
    if strange:
        raise CannotRewindError(f"relations that the template does not have: {sorted(strange)}")
    tables = [pristine.tables[oid] for oid in sorted(owners)]
    for table in tables:
        if table.obstacle:
            raise CannotRewindError(f"{table.name} was changed, and {table.obstacle}")
    analyzed = set() if catalogs.isdisjoint(STATISTICS) else owners | _analyzed(before, now)
    return Changes(
        tables,
        [pristine.tables[oid] for oid in sorted(analyzed & set(pristine.tables))],
        _sequences(before, now),
    )


async def undo(session: Session, changes: Changes) -> None:
    """Put everything back, in one transaction as far as that can be.

    Raises:
        CannotRewindError: what was put back is not what it should be.
        StatementError, ServerUnavailableError: the clone is in an unknown state.
    """
    if changes.tables:
        await _put_back(session, changes.tables)
    for oid, (last, called) in changes.sequences.items():
        await session.rows("SELECT setval($1::oid::regclass, $2, $3)", oid, last, called)
    if changes.tables:
        names = ", ".join(table.name for table in changes.tables)
        await session.execute(f"VACUUM (FREEZE) {names}")
    if changes.analyzed:
        await session.execute(f"ANALYZE {', '.join(table.name for table in changes.analyzed)}")


async def _put_back(session: Session, tables: list[Table]) -> None:
    """Empty the tables and fill them again; nobody's triggers or foreign keys take part."""
    async with session.transaction():
        await session.execute(
            "SET LOCAL session_replication_role = replica;"
            + ";".join(f"DELETE FROM ONLY {table.name}" for table in tables)
        )
        for table in tables:
            if not table.count:
                continue
            count = await session.copy_in(table.schema, table.relation, table.columns, table.rows)
            if count != table.count:
                raise CannotRewindError(f"{table.name}: {count} rows instead of {table.count}")


def _check_database(before: Survey, now: Survey) -> None:
    if now.counting != before.counting:
        raise CannotRewindError("the server lost its counters")
    if now.properties != before.properties:
        raise CannotRewindError("the database's own properties were changed")
    if now.leftovers != NO_LEFTOVERS:
        raise LeftoversError("a prepared transaction, slot or subscription is left")
    if now.sequences.keys() != before.sequences.keys():
        raise CannotRewindError("there are other sequences")


async def _check_catalogs(session: Session, pristine: Pristine, catalogs: set[str]) -> None:
    """See that catalogs that were written to say what they said: temporary tables come and go."""
    found = await read_digests(session, pristine.digest_sql, catalogs)
    other = sorted(name for name, digest in found.items() if digest != pristine.digests[name])
    if other:
        raise CannotRewindError(f"the catalog was changed: {', '.join(other)}")


def _analyzed(before: Survey, now: Survey) -> set[int]:
    """Return the relations of which ANALYZE has written what it never wrote before."""
    return {
        oid
        for oid, relation in now.relations.items()
        if oid in before.relations and before.relations[oid].statistics != relation.statistics
    }


def _sequences(before: Survey, now: Survey) -> dict[int, tuple[int, bool]]:
    return {oid: value for oid, value in before.sequences.items() if now.sequences[oid] != value}


def _state(survey: Survey, oid: int) -> str:
    relation = survey.relations.get(oid)
    return relation.state if relation else "not there"
