"""Reads the WAL from where it was last read, and remembers which pages were written to.

How the server is asked is in `walinspect`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.postgres.rewind import walinspect
from clonepool.postgres.rewind.touched_pages import TouchedPages

if TYPE_CHECKING:
    from clonepool.postgres.rewind.shared_catalogs import SharedCatalogs
    from clonepool.postgres.session import Session

log = structlog.get_logger()

WAL_LOST = "log.lost"


class WalReader:
    """The one reader of a server's WAL.

    Args:
        major: the server's version.
        catalogs: the contents of shared catalogs; it is notified of writes to them.

    Attributes:
        touched_pages: what was read.
        position: up to where the WAL was read; None before it is known from where on to read.
    """

    def __init__(self, major: int, catalogs: SharedCatalogs) -> None:
        self._major = major
        self._catalogs = catalogs
        self.touched_pages = TouchedPages()
        self.position: int | None = None
        self._begin = 0

    def lose(self) -> None:
        """Begin anew at the WAL's end when it is next read: what was written before is unknown."""
        self.position = None
        self._catalogs.forget()

    def covers(self, position: int) -> bool:
        """Say whether everything from that position on was read."""
        return self.position is not None and position >= self._begin

    async def locate(self, session: Session) -> int:
        """Return the position from which on the WAL is to be read."""
        return self.begin_at(await wal_end(session)) if self.position is None else self.position

    def begin_at(self, position: int) -> int:
        """Begin anew at a position, and return it."""
        self.position = self._begin = position
        return position

    def skip_to(self, position: int) -> None:
        """Pass over what was written up to a position, of which nothing matters."""
        self._catalogs.forget()
        self.position = max(self.position or 0, position)

    def give_up_if_behind(self, end: int) -> None:
        """Begin anew if reading up to the end would take too long."""
        if self.position is not None and end - self.position > walinspect.MOST_BEHIND_BYTES:
            log.warning(WAL_LOST, error=f"{end - self.position} bytes of it were not read yet")
            self.lose()

    def add(self, piece: walinspect.WalPiece, own: int | None = None) -> None:
        """Add a piece of the WAL.

        Args:
            piece: what was read.
            own: a transaction of the daemon's whose writes to shared catalogs are known.
        """
        self.touched_pages.add(piece.writes)
        self._catalogs.add_writers(piece.writers - {own})

    async def read_on(
        self, session: Session, start: int, reached: int | None, end: int, followed: list[int]
    ) -> None:
        """Read the rest of the WAL up to a position, a window at a time.

        A record that extends beyond a window is not returned. So the next window begins where the
        last record ends that was returned. Where none was, the window is extended to the end. After
        a window in which few pages were written to, the next one is twice as large.

        Args:
            session: one in which the function that reads was created.
            start: where the last window began.
            reached: where the last record ends that was returned; None if there was none.
            end: a position that is flushed.
            followed: OIDs of the databases whose pages are returned.
        """
        window, few_pages = walinspect.WINDOW_BYTES, True
        while True:
            if reached is not None and reached > start:
                start = reached
                window = (
                    min(2 * window, walinspect.LARGEST_WINDOW_BYTES)
                    if few_pages
                    else walinspect.WINDOW_BYTES
                )
            elif start < end:
                window = end - start  # one record that is larger than a window
            self.position = start
            if start >= end:
                return
            stop = min(start + window, end)
            piece = await walinspect.read_piece(session, self._major, start, stop, followed)
            self.add(piece)
            few_pages = sum(len(each.pages) for each in piece.writes) <= walinspect.FEW_PAGES
            reached = end if stop == end else piece.reached


async def wal_end(session: Session) -> int:
    """Return the position up to which the WAL is written."""
    return walinspect.parse_lsn(await session.value("SELECT pg_current_wal_insert_lsn()::text"))
