"""Where the rows of a table are in a clone that was rewound before.

In a new clone each row has the same ctid as in every other clone of its generation, its *original*
ctid. A rewind inserts rows at other ctids. A `Layout` remembers which rows have moved, and where
to. Of rows that were inserted by one statement it is not known which is which: they are a `Batch`,
and are all inserted again when one of them is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Set

Ctid = bytes
"""A row's ctid as PostgreSQL sends it: four bytes of the page number, two of the line pointer."""


def page_of(ctid: Ctid) -> int:
    """Return the page number of a ctid."""
    return int.from_bytes(ctid[:4])


def ctid_text(ctid: Ctid) -> str:
    """Return a ctid as PostgreSQL writes it."""
    return f"({page_of(ctid)},{int.from_bytes(ctid[4:])})"


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Rows that were inserted by one statement.

    Attributes:
        originals: their original ctids.
        ctids: their ctids in the clone.
    """

    originals: frozenset[Ctid]
    ctids: frozenset[Ctid]


class Difference(msgspec.Struct, frozen=True):
    """What makes a table hold again what it should.

    Attributes:
        delete: ctids of rows to be deleted.
        restore: original ctids of rows to be inserted.
        broken: batches of which a row is missing; their other rows are among `delete`.
    """

    delete: Set[Ctid]
    restore: Set[Ctid]
    broken: list[Batch]

    @property
    def nothing(self) -> bool:
        """Whether the table holds what it should."""
        return not self.delete and not self.restore


class Layout:
    """The rows of one table of one clone that are not at their original ctids."""

    def __init__(self) -> None:
        self._by_original: dict[Ctid, Batch] = {}
        self._by_ctid: dict[Ctid, Batch] = {}
        self._on_page: dict[int, set[Ctid]] = {}

    @property
    def is_original(self) -> bool:
        """Whether every row is at its original ctid."""
        return not self._by_original

    def expected(self, originals: Iterable[Ctid], pages: Iterable[int] | None) -> set[Ctid]:
        """Return all ctids on some pages at which there should be a row.

        Args:
            originals: the original ctids on these pages.
            pages: their numbers; None for all.
        """
        found = set(originals).difference(self._by_original)
        if pages is None:
            return found | self._by_ctid.keys()
        if self._on_page:
            for page in pages:
                found |= self._on_page.get(page, set())
        return found

    def difference(self, missing: Set[Ctid], fresh: Set[Ctid]) -> Difference:
        """Return what makes the table hold again what it should.

        Args:
            missing: ctids at which there should be an old row, and is none.
            fresh: ctids of fresh rows.
        """
        broken = {id(b): b for ctid in missing if (b := self._by_ctid.get(ctid))}.values()
        delete, restore = set(fresh), set(missing).difference(self._by_ctid)
        for batch in broken:
            delete |= batch.ctids - missing
            restore |= batch.originals
        return Difference(delete, restore, list(broken))

    def remember(self, broken: Iterable[Batch], restored: Iterable[Batch]) -> None:
        """Record that rows were put back: the batches `restored` replace those of `broken`."""
        for batch in broken:
            for original in batch.originals:
                del self._by_original[original]
            for ctid in batch.ctids:
                del self._by_ctid[ctid]
                self._on_page[page_of(ctid)].discard(ctid)
        for batch in restored:
            self._by_original |= dict.fromkeys(batch.originals, batch)
            self._by_ctid |= dict.fromkeys(batch.ctids, batch)
            for ctid in batch.ctids:
                self._on_page.setdefault(page_of(ctid), set()).add(ctid)
