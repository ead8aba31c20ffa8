"""One rewind of one clone, from what was inspected to a clean state."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import structlog

from clonepool.errors import StatementError
from clonepool.postgres import leftovers
from clonepool.postgres.rewind.changes import add_unlogged, classify, is_catalog, reclassify
from clonepool.postgres.rewind.checks import check_catalogs, check_tables
from clonepool.postgres.rewind.database_facts import DatabaseFacts, read_entries
from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError
from clonepool.postgres.rewind.relations import read_files
from clonepool.postgres.rewind.restore import NOTHING_RESTORED, Restore
from clonepool.postgres.rewind.settings import PLANNED_ONCE, PREPARED
from clonepool.postgres.rewind.verify import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.baselines import Baselines
    from clonepool.postgres.rewind.changes import Changes
    from clonepool.postgres.rewind.clean_state import CleanState
    from clonepool.postgres.rewind.inspection import Inspection, Inspector
    from clonepool.postgres.rewind.restore import Restored
    from clonepool.postgres.rewind.touched_pages import File
    from clonepool.postgres.session import Session

    TouchedFiles = dict[File, set[int] | None]

log = structlog.get_logger()

BLOAT_FACTOR = 1
BLOAT_BYTES = 8 * 1024 * 1024
"""A clone is recreated when its tables have grown by this factor of their size and these bytes."""
MOST_MOVED_BYTES = 64 * 1024 * 1024
"""Bytes of text put back into large tables beyond which a clone is recreated."""
LEAVING_SECONDS = 1.0
"""Time that a session of the daemon's may take to disappear after it was closed."""
_PAUSE_SECONDS = 0.005
"""Seconds between two inspections while such a session is disappearing."""


class RewindPass:
    """Puts a clone back. Nothing else uses its state during that time.

    Args:
        gateway: the way to the server.
        inspector: of the server.
        baselines: of its generations.
        settings: of the session to the clone.
        major: the server's version.
        clone: its name.
        state: in which it was last clean. On success, this becomes its new clean state; after a
            failure the caller must forget it.
    """

    def __init__(
        self,
        gateway: Gateway,
        inspector: Inspector,
        baselines: Baselines,
        settings: Mapping[str, str],
        major: int,
        clone: str,
        state: CleanState,
    ) -> None:
        self._gateway = gateway
        self._inspector = inspector
        self._baselines = baselines
        self._settings = {**settings, **PLANNED_ONCE}
        self._major = major
        self._clone = clone
        self._state = state

    async def inspect_cleared(self, inspection: Inspection) -> Inspection:
        """Remove what outlives sessions, if there is anything, and check that the rest can stay.

        Returns:
            The inspection, a new one if something was removed.

        Raises:
            CannotRewindError: something has changed that a rewind does not undo.
        """
        try:
            inspection.facts.check(self._state.facts)
        except LeftoversError:
            cleared = await leftovers.clear(self._gateway, self._clone)
            log.info("clone.leftovers_cleared", clone=self._clone, found=cleared)
            inspection = await self._inspect_again()
            inspection.facts.check(self._state.facts)
        return inspection

    def changes(self) -> tuple[Changes, TouchedFiles]:
        """Return what the WAL says was changed, sorted, and the touched files themselves.

        Raises:
            CannotRewindError: the generation's clones cannot be rewound, or too much was touched.
        """
        state = self._state
        if state.baseline.obstacle:
            raise CannotRewindError(state.baseline.obstacle)
        touched_pages, database = self._inspector.reader.touched_pages, state.facts.oid
        touched = touched_pages.touched(database, state.clean_lsn)
        earlier = touched_pages.touched(database, state.inspected_lsn)
        if touched is None or earlier is None:
            raise CannotRewindError("more files were written to than are followed")
        touched |= {file: pages for file, pages in earlier.items() if is_catalog(state.files, file)}
        return add_unlogged(classify(state.files, touched), state.baseline), touched

    async def restore(
        self, inspection: Inspection, changes: Changes, touched: TouchedFiles, *, verified: bool
    ) -> Restored:
        """Put back what was changed. If nothing was, PostgreSQL is not queried.

        Args:
            inspection: what is known of the clone.
            changes: what was changed.
            touched: the files that these changes were made in.
            verified: whether to compare the clone with its generation afterwards.

        Raises:
            VerificationError: the clone is not what it should be.
            CannotRewindError: it cannot be put back, or that would take too long.
            StatementError, ServerUnavailableError: it is in an unknown state.
        """
        state = self._state
        if inspection.facts.activity.others:
            raise CannotRewindError("another session is connected")
        if changes.nothing and not verified:
            state.clean_lsn = state.inspected_lsn = inspection.position
            return NOTHING_RESTORED
        costs = self._baselines.costs(state.build.generation)
        pages = changes.page_count(state.baseline)
        if not costs.favor_rewind(pages):
            raise CannotRewindError(f"{pages} pages were touched: a new clone costs less")
        await self._ensure_reference(changes)
        async with self._session() as session:
            began = time.monotonic()
            done = await self._restore(session, inspection.position, changes, touched)
            costs.record_rewind(done.pages, done.rows, time.monotonic() - began)
            if verified:
                await self._verify(session, inspection.facts)
        self._check_bloat()
        return done

    async def _restore(
        self, session: Session, position: int, changes: Changes, touched: TouchedFiles
    ) -> Restored:
        state, baseline = self._state, self._state.baseline
        if changes.files_unknown:
            files = await read_files(session)
            changes = add_unlogged(reclassify(state.files, files, touched), baseline)
            state.files = files
        await check_catalogs(session, baseline, changes)
        check_tables(baseline, changes)
        restore = Restore(
            session,
            state.facts.oid,
            baseline,
            state.history,
            state.clean_xid,
            lambda: self._baselines.reference(state.build),
            self._major,
        )
        done = await restore.run(changes, self._check_cost)
        state.clean_lsn, state.clean_xid = done.position, done.clean_xid
        state.inspected_lsn = position
        return done

    def _check_cost(self, rows: int) -> None:
        if not self._baselines.costs(self._state.build.generation).favor_rewind(0, rows):
            raise CannotRewindError(f"{rows} rows were changed: a new clone costs less")

    def _check_bloat(self) -> None:
        history, baseline = self._state.history, self._state.baseline
        if history.more_bytes > BLOAT_FACTOR * baseline.size + BLOAT_BYTES:
            raise CannotRewindError(f"it has grown by {history.more_bytes} bytes")
        if history.moved_bytes > MOST_MOVED_BYTES:
            raise CannotRewindError(f"{history.moved_bytes} bytes of rows have moved")

    async def _inspect_again(self) -> Inspection:
        """Inspect the clone, repeatedly while a session that was just closed is disappearing."""
        until = anyio.current_time() + LEAVING_SECONDS
        while True:
            inspection = await self._inspector.inspect(self._clone, self._state.backend_pid)
            if not inspection.facts.activity.others or anyio.current_time() > until:
                return inspection
            await anyio.sleep(_PAUSE_SECONDS)

    async def _ensure_reference(self, changes: Changes) -> None:
        """Make a reference clone, if one may be needed, before a session is opened."""
        baseline = self._state.baseline
        needed = changes.files_unknown or any(
            baseline.tables[oid].needs_reference for oid in changes.tables
        )
        if needed and baseline.needs_reference:
            await self._baselines.ensure_reference(self._state.build)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        """Lend a session to the clone; afterwards it is kept in the clone's state."""
        session, self._state.session = self._state.session, None
        if session is None or not session.usable:
            session = await self._gateway.connect(
                self._clone, settings=self._settings, statements=PREPARED
            )
        try:
            yield session
        except StatementError as error:
            await session.close()
            # Something may have been dropped, or a constraint may refuse what it once allowed.
            raise CannotRewindError(str(error)) from error
        except BaseException:
            await session.close()
            raise
        self._state.session = session

    async def _verify(self, session: Session, inspected: DatabaseFacts) -> None:
        async def digest(table: Table) -> str:
            async with self._baselines.reference(self._state.build) as reference:
                return await reference.digest(table)

        now = DatabaseFacts(inspected.activity, await read_entries(session))
        await verify(session, self._state.baseline, (now, self._state.facts), digest)
