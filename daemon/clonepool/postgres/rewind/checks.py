"""Whether what a lease touched can be put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.postgres.rewind.digests import read_digests
from clonepool.postgres.rewind.errors import CannotRewindError

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Session
    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.changes import Changes


async def check_catalogs(session: Session, pristine: Baseline, touch: Changes) -> None:
    """See that catalogs that were written to say what they said: temporary tables come and go."""
    catalogs = {pristine.catalogs[oid] for oid in touch.catalogs}
    found = await read_digests(session, pristine.digest_sql, catalogs)
    other = sorted(name for name, digest in found.items() if digest != pristine.digests[name])
    if other:
        raise CannotRewindError(f"the catalog was changed: {', '.join(other)}")


def check_tables(pristine: Baseline, touch: Changes) -> None:
    """See that what was touched can be put back."""
    strange = touch.tables.keys() - pristine.tables.keys()
    if strange:
        raise CannotRewindError(f"relations that the template does not have: {sorted(strange)}")
    for oid in touch.tables:
        table = pristine.tables[oid]
        if table.obstacle:
            raise CannotRewindError(f"{table.name} was changed, and {table.obstacle}")
