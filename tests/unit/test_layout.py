"""The places of rows after they were put back elsewhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clonepool.postgres.rewind.layout import Batch, Ctid, Layout, ctid_text, page_of


def at(page: int, line: int) -> Ctid:
    return page.to_bytes(4) + line.to_bytes(2)


def test_a_place_is_written_as_postgresql_does() -> None:
    assert ctid_text(at(70000, 291)) == "(70000,291)"
    assert page_of(at(70000, 291)) == 70000


def test_a_table_that_was_never_put_back_has_its_rows_where_the_template_has_them() -> None:
    layout = Layout()
    assert layout.expected([at(0, 1), at(0, 2)], {0}) == {at(0, 1), at(0, 2)}
    assert layout.is_original


def test_rows_put_back_elsewhere_are_expected_there_and_nowhere_else() -> None:
    layout = Layout()
    layout.remember([], [Batch(frozenset({at(0, 1)}), frozenset({at(3, 7)}))])
    assert layout.expected([at(0, 1), at(0, 2)], {0}) == {at(0, 2)}
    assert layout.expected([], {3}) == {at(3, 7)}
    assert layout.expected([at(0, 1), at(0, 2)], None) == {at(0, 2), at(3, 7)}
    assert not layout.is_original


def test_when_one_row_of_a_batch_is_missing_all_of_it_is_put_back_again() -> None:
    layout = Layout()
    originals, ctids = frozenset({at(0, 1), at(0, 2)}), frozenset({at(3, 7), at(3, 8)})
    layout.remember([], [Batch(originals, ctids)])
    found = layout.difference(missing={at(3, 7), at(0, 5)}, fresh={at(4, 1)})
    assert found.delete == {at(3, 8), at(4, 1)}
    assert found.restore == {at(0, 1), at(0, 2), at(0, 5)}
    layout.remember(found.broken, [Batch(frozenset(found.restore), frozenset({at(5, 1)}))])
    assert layout.expected([], {3, 4, 5}) == {at(5, 1)}


def test_a_fresh_row_in_the_place_of_a_missing_one_goes_and_the_missing_one_comes() -> None:
    found = Layout().difference(missing={at(0, 1)}, fresh={at(0, 1)})
    assert found.delete == found.restore == {at(0, 1)}


LEASES = st.lists(
    st.tuples(st.sets(st.integers(0, 11)), st.integers(0, 4), st.integers(1, 4)), max_size=12
)


@given(LEASES)
def test_after_any_leases_every_row_is_there_once(
    leases: list[tuple[set[int], int, int]],
) -> None:
    """A table of rows that know who they are is put back by ctids alone."""
    originals = {at(n // 4, 1 + n % 4): n for n in range(12)}
    table, layout, last = dict(originals), Layout(), 100
    for changed, added, batch in leases:
        old = set(table)
        for place in [place for place, row in table.items() if row in changed]:
            del table[place]
        fresh = {at(last + n, 1): -1 for n in range(added)}
        last += added
        expected = layout.expected(originals, None)
        assert expected == old
        found = layout.difference(expected - table.keys(), set(fresh))
        table |= fresh
        for place in found.delete:
            del table[place]
        batches = []
        restore = sorted(found.restore)
        for first in range(0, len(restore), batch):
            some = restore[first : first + batch]
            ctids = [at(last + n, 2) for n in range(len(some))]
            last += len(some)
            # The order of the rows is not known.
            table |= dict(zip(reversed(ctids), (originals[p] for p in some), strict=True))
            batches.append(Batch(frozenset(some), frozenset(ctids)))
        layout.remember(found.broken, batches)
        assert sorted(table.values()) == list(range(12))
