"""References: for each generation one clone that nobody ever leases, to read rows from.

A sealed template cannot be read. A reference is made before it is first needed, and read over one
connection that stays open.
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
from clonepool.postgres.rewind.layout import tid
from clonepool.postgres.rewind.row_locations import read_places, read_sent, runs_of, together
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

    from clonepool.postgres.gateway import Gateway, Session
    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.layout import Place

    Make = Callable[[str], Awaitable[str]]

log = structlog.get_logger()

LARGEST_CACHE = 4096
"""Pages of which it is remembered where their rows are, some hundreds of bytes to a few kilobytes
each."""
LONGEST_TEXT_BYTES = 8 * 1024 * 1024
"""So much may be read, and put back, of one table at a time."""


class Reference:
    """One clone of a generation, as it was made."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self.session = session
        self._pages: dict[tuple[int, int], set[Place]] = {}
        self._digests: dict[int, str] = {}

    async def places(self, table: Table, pages: Iterable[int] | None) -> set[Place]:
        """Return where there are rows on these pages, or on all; there are none beyond the last."""
        wanted = range(table.pages) if pages is None else {n for n in pages if n < table.pages}
        missing = {n for n in wanted if (table.oid, n) not in self._pages}
        if len(self._pages) + len(missing) > LARGEST_CACHE:
            self._pages.clear()
            missing = set(wanted)
        for runs in together(runs_of(table, missing)):
            self._pages |= await read_places(self.session, runs)
        return set().union(*(self._pages[table.oid, n] for n in wanted))

    async def texts(self, table: Table, places: Collection[Place]) -> dict[Place, str]:
        """Return the texts of the rows in these places.

        Raises:
            CannotRewindError: they are too long, or not there.
        """
        tids = ",".join(f'"{tid(place)}"' for place in places)
        (row,) = await self.session.rows(
            f"SELECT CASE WHEN sum(octet_length(line)) <= {LONGEST_TEXT_BYTES}"
            " THEN array_agg(line) END AS lines, array_send(array_agg(ctid)) AS places"
            " FROM (SELECT ctid, ROW(whole.*)::text AS line"
            f" FROM ONLY {table.name} AS whole WHERE ctid = ANY ('{{{tids}}}'::tid[])) AS rows"
        )
        found = read_sent(row["places"])
        if row["lines"] is None or len(found) != len(places):
            raise CannotRewindError(f"{table.name}: rows to be put back are too long, or not there")
        return dict(zip(found, row["lines"], strict=True))

    async def digest(self, table: Table) -> str:
        """Return the digest of a large table's rows."""
        if table.oid not in self._digests:
            self._digests[table.oid] = await read_rows_digest(self.session, table.name)
        return self._digests[table.oid]


class References:
    """The references of one server.

    Args:
        gateway: the way to the server.
        make: copies a generation of that name into a database for this, and returns its name.
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
        """The generation was built anew: what is known of the old one is of no use."""
        found = self._known.pop(generation, None)
        if found is not None:
            self._stale.append(found)

    async def drop(self, generation: str) -> None:
        """Forget the reference of a generation, and drop it with others that are forgotten."""
        async with self._lock(generation):
            self.forget(generation)
            await self._drop_stale()

    async def ensure(self, generation: str) -> None:
        """See that there is a reference; while one cannot be made, only small tables are put back.

        It takes connections, so that it must not be called by who holds one.
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
        """Have a generation's reference for oneself.

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
                self.forget(generation)  # what its session does now is not known
                raise

    async def close(self) -> None:
        """Drop all references."""
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
            # Whoever could write here would write into every clone.
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
