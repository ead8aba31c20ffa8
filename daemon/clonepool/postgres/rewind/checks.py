"""Refuses changes that cannot be put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.postgres.rewind.digests import read_digests
from clonepool.postgres.rewind.errors import CannotRewindError

if TYPE_CHECKING:
    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.changes import Changes
    from clonepool.postgres.session import Session


async def check_catalogs(session: Session, baseline: Baseline, changes: Changes) -> None:
    """Check that the catalogs that were written to hold what they did.

    Temporary tables, for example, come and go without leaving anything.

    Raises:
        CannotRewindError: a catalog holds something else.
    """
    catalogs = {baseline.catalogs[oid] for oid in changes.catalogs}
    found = await read_digests(session, baseline.digest_sql, catalogs)
    changed = sorted(name for name, digest in found.items() if digest != baseline.digests[name])
    if changed:
        raise CannotRewindError(f"the catalog was changed: {', '.join(changed)}")


def check_tables(baseline: Baseline, changes: Changes) -> None:
    """Check that the tables that were written to can be put back.

    Raises:
        CannotRewindError: one cannot.
    """
    unknown = changes.tables.keys() - baseline.tables.keys()
    if unknown:
        raise CannotRewindError(f"relations that the template does not have: {sorted(unknown)}")
    for oid in changes.tables:
        table = baseline.tables[oid]
        if table.obstacle:
            raise CannotRewindError(f"{table.name} was changed, and {table.obstacle}")
