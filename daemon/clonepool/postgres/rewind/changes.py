"""What a lease changed: the files that the WAL names, sorted into tables, sequences and catalogs.

This is complete for the following reasons. A relation's contents are in its files, and pg_class or
the relation map (for some catalogs) says which files these are. A page of a known file does not
change without a record that names it. A new file is named by such records, or it was filled by the
transaction that made it, which then also wrote to pg_class. So where pg_class or an unknown file
was written to, the relations' files are read anew, and a relation that has another file than before
counts as changed as a whole. A file that no relation has any more does not matter.

Unlogged tables and sequences are not in the WAL: they always count as changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import msgspec

from clonepool.postgres.rewind.relations import RelationKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.relations import Files, Relation
    from clonepool.postgres.rewind.touched_pages import File

PG_CLASS = 1259
"""OID of pg_class."""


class Changes(msgspec.Struct):
    """What a rewind has to look at.

    Attributes:
        tables: the touched pages of each table, by its OID; None for all pages.
        replaced: OIDs of those tables that have another file than before, in which the old ctids
            mean nothing.
        toasted: OIDs of tables whose TOAST tables were written to.
        sequences: OIDs.
        catalogs: OIDs.
        files_unknown: whether a relation may have another file than is known.
    """

    tables: dict[int, set[int] | None] = {}
    replaced: set[int] = set()
    toasted: set[int] = set()
    sequences: set[int] = set()
    catalogs: set[int] = set()
    files_unknown: bool = False

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to look at."""
        return not (
            self.tables or self.toasted or self.sequences or self.catalogs or self.files_unknown
        )

    def page_count(self, baseline: Baseline) -> int:
        """Return how many pages of tables have to be looked at, at least."""
        return sum(
            baseline.tables[oid].pages if pages is None else len(pages)
            for oid, pages in self.tables.items()
        )


def classify(files: Files, touched: Mapping[File, set[int] | None]) -> Changes:
    """Sort touched files by the relations they belong to."""
    found = Changes()
    for file, pages in touched.items():
        relation = files.get(file)
        if relation is None:
            found.files_unknown = True
        else:
            _add(found, relation, pages)
    found.files_unknown |= PG_CLASS in found.catalogs
    return found


def reclassify(before: Files, now: Files, touched: Mapping[File, set[int] | None]) -> Changes:
    """Sort touched files by the relations they belong to now.

    A relation that has another file than before counts as changed as a whole.
    """
    found = classify(now, touched)
    file_before = {relation.oid: file for file, relation in before.items()}
    for file, relation in now.items():
        if file_before.get(relation.oid) != file:
            _add(found, relation, None)
            if relation.kind is RelationKind.TABLE:
                found.replaced.add(relation.oid)
    found.files_unknown = False
    return found


def _add(found: Changes, relation: Relation, pages: set[int] | None) -> None:
    match relation.kind:
        case RelationKind.TABLE:
            found.tables[relation.oid] = pages
        case RelationKind.TOAST:
            found.toasted.add(relation.owner)
        case RelationKind.SEQUENCE:
            found.sequences.add(relation.oid)
        case RelationKind.CATALOG:
            found.catalogs.add(relation.owner)
        case RelationKind.DERIVED:
            pass
        case _:
            assert_never(relation.kind)


def is_catalog(files: Files, file: File) -> bool:
    """Say whether a file belongs to a catalog other than pg_class, the one a rewind writes to."""
    relation = files.get(file)
    if relation is None:
        return False
    return relation.kind is RelationKind.CATALOG and relation.owner != PG_CLASS


def add_unlogged(changes: Changes, baseline: Baseline) -> Changes:
    """Add all unlogged tables and sequences, and return the changes."""
    for oid in baseline.unlogged:
        if oid in baseline.tables:
            changes.tables[oid] = None
        else:
            changes.sequences.add(oid)
    return changes
