"""What a lease touched: the files that the log names, as tables, sequences and catalogs.

Why that is all: what a relation holds is in its files, and which these are is in pg_class or, for
some catalogs, in the relation map. A page of a file that is known does not change without a record
that names it. A file that is new is either named by such records, or was filled by the transaction
that made it, which then wrote to pg_class too. So where pg_class or a file that is not known was
touched, it is asked anew which file belongs to which relation; one with another file than before is
touched as a whole. What happened to a file that no relation has any more is of no consequence.

Unlogged tables and sequences are not in the log: they always count as touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import msgspec

from clonepool.postgres.rewind.relations import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.relations import Files, Relation
    from clonepool.postgres.rewind.touched_pages import File

PG_CLASS = 1259


class Changes(msgspec.Struct):
    """What is to be looked at.

    Attributes:
        tables: by OID, which pages; None for all.
        replaced: OIDs of those tables that have another file than before: no place in it means what
            it meant.
        toasted: OIDs of tables whose long values were written to.
        sequences: OIDs.
        catalogs: OIDs.
        strange: whether it may be that a relation has another file than is known.
    """

    tables: dict[int, set[int] | None] = {}
    replaced: set[int] = set()
    toasted: set[int] = set()
    sequences: set[int] = set()
    catalogs: set[int] = set()
    strange: bool = False

    @property
    def nothing(self) -> bool:
        """Whether nothing is to be looked at."""
        return not (self.tables or self.toasted or self.sequences or self.catalogs or self.strange)

    def pages(self, pristine: Baseline) -> int:
        """Return how many pages of tables are to be looked at, at least."""
        return sum(
            pristine.tables[oid].pages if pages is None else len(pages)
            for oid, pages in self.tables.items()
        )


def sort_out(files: Files, touched: Mapping[File, set[int] | None]) -> Changes:
    """Sort touched files by what they are of."""
    found = Changes()
    for file, pages in touched.items():
        relation = files.get(file)
        if relation is None:
            found.strange = True
        else:
            _add(found, relation, pages)
    found.strange |= PG_CLASS in found.catalogs
    return found


def sort_out_again(before: Files, now: Files, touched: Mapping[File, set[int] | None]) -> Changes:
    """Sort touched files by what they are of now; what has another file is touched as a whole."""
    found = sort_out(now, touched)
    was = {relation.oid: file for file, relation in before.items()}
    for file, relation in now.items():
        if was.get(relation.oid) != file:
            _add(found, relation, None)
            if relation.kind is Kind.TABLE:
                found.replaced.add(relation.oid)
    found.strange = False
    return found


def _add(found: Changes, relation: Relation, pages: set[int] | None) -> None:
    match relation.kind:
        case Kind.TABLE:
            found.tables[relation.oid] = pages
        case Kind.TOAST:
            found.toasted.add(relation.owner)
        case Kind.SEQUENCE:
            found.sequences.add(relation.oid)
        case Kind.CATALOG:
            found.catalogs.add(relation.owner)
        case Kind.DERIVED:
            pass
        case _:
            assert_never(relation.kind)


def is_catalog(files: Files, file: File) -> bool:
    """Say whether a file is of a catalog to which no rewind ever writes."""
    relation = files.get(file)
    return relation is not None and relation.kind is Kind.CATALOG and relation.owner != PG_CLASS


def with_unlogged(touch: Changes, pristine: Baseline) -> Changes:
    """Have everything looked at of which the log does not tell."""
    for oid in pristine.unlogged:
        if oid in pristine.tables:
            touch.tables[oid] = None
        else:
            touch.sequences.add(oid)
    return touch
