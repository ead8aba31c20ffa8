"""What shared catalogs said of the clones, for as long as it must still be true.

The WAL says when a page of a shared catalog is written, and does not name the page when that is
committed. So nothing is remembered while a transaction that wrote to them may yet commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.postgres.rewind.database_facts import CatalogEntries

_XIDS = 2**32
"""Transaction numbers in the WAL have 32 bits, and wrap around."""


class SharedCatalogs:
    """What shared catalogs said when they were last read.

    Attributes:
        entries: what they said of clones, by name.
        shared: the digest of the state that all databases share.
    """

    def __init__(self) -> None:
        self.entries: dict[str, CatalogEntries] = {}
        self.shared: str | None = None
        self._writers: set[int] = set()
        self._unread_until: int | None = None

    def knows(self, clones: Iterable[str]) -> bool:
        """Say whether the entries of all these clones are remembered."""
        return all(clone in self.entries for clone in clones)

    def forget(self) -> None:
        """Remember nothing until all transactions that have begun are over.

        Part of the WAL will not be read, so any of them may have written to shared catalogs.
        """
        self.entries.clear()
        self._unread_until = None

    def add_writers(self, transactions: set[int]) -> None:
        """Add transactions that wrote to shared catalogs."""
        self._writers |= transactions

    def update(self, entries: Iterable[CatalogEntries], shared: str | None) -> None:
        """Replace what is remembered by what was just read."""
        self.entries = {each.name: each for each in entries}
        self.shared = shared

    def forget_unsettled(self, settled: int, begun: int) -> None:
        """Forget the entries if a transaction that wrote to shared catalogs may yet commit.

        Args:
            settled: transactions before this one were over when the catalogs were read.
            begun: transactions from this one on had not begun then.
        """
        if self._unread_until is None:
            self._unread_until = begun
        self._writers = {
            writer for writer in self._writers if not 0 < (settled - writer) % _XIDS < _XIDS // 2
        }
        if self._writers or settled < self._unread_until:
            self.entries.clear()
