"""Reference clones: for each generation one clone that is never leased, to read rows from.

A sealed generation itself cannot be read. A reference clone is made before it is first needed, and
read over one connection that stays open.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.errors import ClonepoolError, ServerUnavailableError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.rewind.digests import read_rows_digest
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.layout import ctid_text
from clonepool.postgres.rewind.row_locations import (
    batched,
    decode_ctids,
    page_ranges,
    read_ctids,
)
from clonepool.postgres.rewind.settings import PLANNED_ONCE, PREPARED

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Iterable,
        Mapping,
    )

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.layout import Ctid
    from clonepool.postgres.session import Session

    Make = Callable[[str], Awaitable[str]]

log = structlog.get_logger()

MOST_CACHED_PAGES = 4096
"""Number of pages whose ctids are remembered, with some hundred bytes to a few kilobytes each."""
LONGEST_TEXT_BYTES = 8 * 1024 * 1024
"""Most bytes of text of one table that may be read and put back at a time."""


class Reference:
    """One clone of a generation, as it was made."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self.session = session
        self._pages: dict[tuple[int, int], set[Ctid]] = {}
        self._digests: dict[int, str] = {}

    async def ctids(self, table: Table, pages: Iterable[int] | None) -> set[Ctid]:
        """Return the ctids of all rows on these pages; None for all pages.

        There are no rows on pages beyond the table's last.
        """
        wanted = range(table.pages) if pages is None else {n for n in pages if n < table.pages}
        missing = {n for n in wanted if (table.oid, n) not in self._pages}
        if len(self._pages) + len(missing) > MOST_CACHED_PAGES:
            self._pages.clear()
            missing = set(wanted)
        for ranges in batched(page_ranges(table, missing)):
            self._pages |= await read_ctids(self.session, ranges)
        return set().union(*(self._pages[table.oid, n] for n in wanted))

    async def texts(self, table: Table, ctids: Collection[Ctid]) -> dict[Ctid, str]:
        """Return the texts of the rows at these ctids.

        Raises:
            CannotRewindError: they are too long, or not there.
        """
        tids = ",".join(f'"{ctid_text(ctid)}"' for ctid in ctids)
        (row,) = await self.session.rows(
            f"SELECT CASE WHEN sum(octet_length(line)) <= {LONGEST_TEXT_BYTES}"
            " THEN array_agg(line) END AS lines, array_send(array_agg(ctid)) AS ctids"
            " FROM (SELECT ctid, ROW(whole.*)::text AS line"
            f" FROM ONLY {table.name} AS whole WHERE ctid = ANY ('{{{tids}}}'::tid[])) AS rows"
        )
        found = decode_ctids(row["ctids"])
        if row["lines"] is None or len(found) != len(ctids):
            raise CannotRewindError(f"{table.name}: rows to be put back are too long, or not there")
        return dict(zip(found, row["lines"], strict=True))

    async def digest(self, table: Table) -> str:
        """Return the digest of a large table's rows."""
        if table.oid not in self._digests:
            self._digests[table.oid] = await read_rows_digest(self.session, table.name)
        return self._digests[table.oid]


class References:
    """The reference clones of one server.

    Args:
        gateway: the way to the server.
        make: copies the generation of that name into a database that is never leased, and returns
            its name.
        settings: of the sessions that read.
    """

    def __init__(self, gateway: Gateway, make: Make, settings: Mapping[str, str]) -> None:
        self._gateway = gateway
        self._make = make
        self._settings = settings
        self._known: dict[str, Reference] = {}
        self._stale: list[Reference] = []
        self._locks: dict[str, anyio.Lock] = {}

    def forget(self, generation: str) -> None:
        """Do not use the reference clone of a generation any more; it is dropped later."""
        found = self._known.pop(generation, None)
        if found is not None:
            self._stale.append(found)

    async def drop(self, generation: str) -> None:
        """Drop the reference clone of a generation, and others that are no longer used."""
        async with self._lock(generation):
            self.forget(generation)
            await self._drop_stale()

    async def ensure(self, generation: str) -> None:
        """Make a reference clone, unless there is one.

        If that fails it is logged, and only tables that are kept in memory can be put back. This
        takes connections, so it must not be called while holding one.
        """
        async with self._lock(generation):
            found = self._known.get(generation)
            if found is not None and found.session.usable:
                return
            self.forget(generation)
            try:
                await self._drop_stale()
                self._known[generation] = await self._new(generation)
            except ClonepoolError as error:
                log.info("reference.not_made", generation=generation, error=error.sentence())

    @asynccontextmanager
    async def of(self, generation: str) -> AsyncIterator[Reference]:
        """Lend a generation's reference clone; other callers wait for its return.

        Raises:
            CannotRewindError: there is none.
        """
        async with self._lock(generation):
            found = self._known.get(generation)
            if found is None or not found.session.usable:
                raise CannotRewindError("there is no reference")
            try:
                yield found
            except (CannotRewindError, StatementError):
                raise
            except BaseException:
                self.forget(generation)  # it is not known what its session is doing
                raise

    async def close(self) -> None:
        """Drop all reference clones."""
        for generation in list(self._known):
            self.forget(generation)
        await self._drop_stale()

    def _lock(self, generation: str) -> anyio.Lock:
        return self._locks.setdefault(generation, anyio.Lock())

    async def _new(self, generation: str) -> Reference:
        name = await self._make(generation)
        settings = {**self._settings, **PLANNED_ONCE}
        session = await self._gateway.connect(name, settings=settings, statements=PREPARED)
        try:
            # A session that could write to a reference clone could change every clone.
            await databases.close(self._gateway, name)
        except BaseException:
            await session.close()
            raise
        log.info("reference.made", database=name)
        return Reference(name, session)

    async def _drop_stale(self) -> None:
        while self._stale:
            reference = self._stale.pop()
            await reference.session.close()
            try:
                await databases.drop(self._gateway, reference.name)
            except ServerUnavailableError as error:
                log.warning("reference.left", database=reference.name, error=str(error))
