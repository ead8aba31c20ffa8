"""Where the rows of a table live, in one clone that was rewound before.

A fresh clone has every row at the same place (its ctid) as every other clone of its generation. A
rewind puts rows back elsewhere. A `Layout` remembers which rows of the generation are not in their
original places, and where they are. Of rows that were put back together it is not known which is
which: they are a *batch*, and are put back together again when one of them is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Set

Place = bytes
"""Where a row is, as PostgreSQL sends a ctid: four bytes of the page, two of the line pointer."""


def page_of(place: Place) -> int:
    """Return the number of the page that a place is on."""
    return int.from_bytes(place[:4])


def tid(place: Place) -> str:
    """Return a place as PostgreSQL writes it."""
    return f"({page_of(place)},{int.from_bytes(place[4:])})"


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Rows that were put back together.

    Attributes:
        originals: their places in the generation.
        places: where they are in the clone.
    """

    originals: frozenset[Place]
    places: frozenset[Place]


class Difference(msgspec.Struct, frozen=True):
    """What is to be done to one table.

    Attributes:
        delete: places of rows that should not be there.
        restore: places in the generation of rows that are missing.
        broken: batches of which a row is missing; the others of theirs are among `delete`.
    """

    delete: Set[Place]
    restore: Set[Place]
    broken: list[Batch]

    @property
    def nothing(self) -> bool:
        """Whether the table holds what it should."""
        return not self.delete and not self.restore


class Layout:
    """The rows of one table of one clone that are not where the generation has them."""

    def __init__(self) -> None:
        self._of_original: dict[Place, Batch] = {}
        self._of_place: dict[Place, Batch] = {}
        self._on_page: dict[int, set[Place]] = {}

    @property
    def is_original(self) -> bool:
        """Whether every row is where the generation has it."""
        return not self._of_original

    def expected(self, originals: Iterable[Place], pages: Iterable[int] | None) -> set[Place]:
        """Return the places on some pages where there should be a row, and nowhere else.

        Args:
            originals: the places on these pages where the generation has one.
            pages: their numbers; None for all.
        """
        found = set(originals).difference(self._of_original)
        if pages is None:
            return found | self._of_place.keys()
        if self._on_page:
            for page in pages:
                found |= self._on_page.get(page, set())
        return found

    def difference(self, missing: Set[Place], fresh: Set[Place]) -> Difference:
        """Tell what makes a table hold again what it should.

        Args:
            missing: places where there should be a row that was there when the clone was clean, and
                is none.
            fresh: places of rows that were written since.
        """
        broken = {id(b): b for place in missing if (b := self._of_place.get(place))}.values()
        delete, restore = set(fresh), set(missing).difference(self._of_place)
        for batch in broken:
            delete |= batch.places - missing
            restore |= batch.originals
        return Difference(delete, restore, list(broken))

    def remember(self, broken: Iterable[Batch], restored: Iterable[Batch]) -> None:
        """Note that rows were put back: those of `broken` are where the `restored` say."""
        for batch in broken:
            for original in batch.originals:
                del self._of_original[original]
            for place in batch.places:
                del self._of_place[place]
                self._on_page[page_of(place)].discard(place)
        for batch in restored:
            self._of_original |= dict.fromkeys(batch.originals, batch)
            self._of_place |= dict.fromkeys(batch.places, batch)
            for place in batch.places:
                self._on_page.setdefault(page_of(place), set()).add(place)
