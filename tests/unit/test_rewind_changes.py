"""Which changes the touched files of a clone imply."""

from __future__ import annotations

from clonepool.postgres.rewind.changes import PG_CLASS, classify, reclassify
from clonepool.postgres.rewind.relations import Relation, RelationKind
from clonepool.postgres.rewind.touched_pages import File

CLASS, TABLE, TOAST, INDEX, SEQUENCE, LONG, NEW = (File(1663, number) for number in range(1, 8))
FILES = {
    CLASS: Relation(PG_CLASS, RelationKind.CATALOG, PG_CLASS),
    TABLE: Relation(20_000, RelationKind.TABLE, 20_000),
    TOAST: Relation(20_001, RelationKind.TOAST, 20_000),
    INDEX: Relation(20_002, RelationKind.DERIVED, 20_002),
    SEQUENCE: Relation(20_003, RelationKind.SEQUENCE, 20_003),
    LONG: Relation(2836, RelationKind.CATALOG, 1255),
}


def test_an_index_follows_from_its_table_and_is_not_looked_at() -> None:
    assert classify(FILES, {INDEX: {1}}).nothing


def test_each_kind_of_file_is_told_from_the_others() -> None:
    found = classify(FILES, {TABLE: {1, 2}, TOAST: {0}, SEQUENCE: {0}, LONG: {3}})
    assert found.tables == {20_000: {1, 2}}
    assert (found.toasted, found.sequences, found.catalogs) == ({20_000}, {20_003}, {1255})
    assert not found.files_unknown


def test_files_are_asked_for_anew_when_one_is_not_known_or_pg_class_was_written_to() -> None:
    assert classify(FILES, {NEW: {0}}).files_unknown
    assert classify(FILES, {CLASS: {0}}).files_unknown


def test_a_table_with_another_file_is_looked_at_as_a_whole() -> None:
    now = {file: relation for file, relation in FILES.items() if file != TABLE}
    now[NEW] = FILES[TABLE]
    found = reclassify(FILES, now, {CLASS: {0}, NEW: {4}, TABLE: {1}})
    assert found.tables == {20_000: None}, "not the pages of either file"
    assert found.replaced == {20_000}
    assert not found.files_unknown


def test_whatever_has_another_file_counts_as_touched_without_a_record_that_says_so() -> None:
    now = {File(9, file.number): relation for file, relation in FILES.items()}
    found = reclassify(FILES, now, {})
    assert (found.sequences, found.catalogs) == ({20_003}, {PG_CLASS, 1255})
    assert (found.replaced, found.toasted) == ({20_000}, {20_000})


def test_what_happened_to_a_file_that_no_relation_has_is_of_no_consequence() -> None:
    assert reclassify(FILES, FILES, {NEW: {0, 1}}).nothing
