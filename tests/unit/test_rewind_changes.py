"""What touched files mean."""

from __future__ import annotations

from clonepool.postgres.rewind.changes import PG_CLASS, sort_out, sort_out_again
from clonepool.postgres.rewind.relations import Kind, Relation
from clonepool.postgres.rewind.touched_pages import File

CLASS, TABLE, TOAST, INDEX, SEQUENCE, LONG, NEW = (File(1663, number) for number in range(1, 8))
FILES = {
    CLASS: Relation(PG_CLASS, Kind.CATALOG, PG_CLASS),
    TABLE: Relation(20_000, Kind.TABLE, 20_000),
    TOAST: Relation(20_001, Kind.TOAST, 20_000),
    INDEX: Relation(20_002, Kind.DERIVED, 20_002),
    SEQUENCE: Relation(20_003, Kind.SEQUENCE, 20_003),
    LONG: Relation(2836, Kind.CATALOG, 1255),
}


def test_an_index_follows_from_its_table_and_is_not_looked_at() -> None:
    assert sort_out(FILES, {INDEX: {1}}).nothing


def test_each_kind_of_file_is_told_from_the_others() -> None:
    found = sort_out(FILES, {TABLE: {1, 2}, TOAST: {0}, SEQUENCE: {0}, LONG: {3}})
    assert found.tables == {20_000: {1, 2}}
    assert (found.toasted, found.sequences, found.catalogs) == ({20_000}, {20_003}, {1255})
    assert not found.strange


def test_files_are_asked_for_anew_when_one_is_not_known_or_pg_class_was_written_to() -> None:
    assert sort_out(FILES, {NEW: {0}}).strange
    assert sort_out(FILES, {CLASS: {0}}).strange


def test_a_table_with_another_file_is_looked_at_as_a_whole() -> None:
    now = {file: relation for file, relation in FILES.items() if file != TABLE}
    now[NEW] = FILES[TABLE]
    found = sort_out_again(FILES, now, {CLASS: {0}, NEW: {4}, TABLE: {1}})
    assert found.tables == {20_000: None}, "not the pages of either file"
    assert found.replaced == {20_000}
    assert not found.strange


def test_whatever_has_another_file_counts_as_touched_without_a_record_that_says_so() -> None:
    now = {File(9, file.number): relation for file, relation in FILES.items()}
    found = sort_out_again(FILES, now, {})
    assert (found.sequences, found.catalogs) == ({20_003}, {PG_CLASS, 1255})
    assert (found.replaced, found.toasted) == ({20_000}, {20_000})


def test_what_happened_to_a_file_that_no_relation_has_is_of_no_consequence() -> None:
    assert sort_out_again(FILES, FILES, {NEW: {0, 1}}).nothing
