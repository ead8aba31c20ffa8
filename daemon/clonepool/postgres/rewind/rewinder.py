"""Rewinds the clones of one server, and keeps the state in which each was last clean.

All of it is in memory. A clone of an earlier daemon has no clean state and is recreated when it
comes back, unless it was parked, and verified when it was adopted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.postgres.databases import annotate
from clonepool.postgres.rewind.adopted import locate_rows
from clonepool.postgres.rewind.baselines import Baselines
from clonepool.postgres.rewind.clean_state import CleanState
from clonepool.postgres.rewind.database_facts import NOTHING_SHARED
from clonepool.postgres.rewind.errors import CannotRewindError
from clonepool.postgres.rewind.inspection import Inspector
from clonepool.postgres.rewind.kept_sessions import KeptSessions
from clonepool.postgres.rewind.rewind_pass import RewindPass
from clonepool.postgres.rewind.settings import settings_of
from clonepool.postgres.rewind.verify import verify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.baselines import Build
    from clonepool.postgres.rewind.inspection import Inspection

MOST_KEPT_SESSIONS = 32
"""Default number of sessions that may stay on clones."""


class Rewound(msgspec.Struct, frozen=True):
    """What a rewind did, for metrics and logs."""

    tables: int
    sequences: int
    seconds: float


class Rewinder:
    """Rewinds the clones of one server.

    Args:
        gateway: the way to it.
        make_reference: copies the generation of that name into a database that is never leased, and
            returns its name.
        major: the server's version.
        most_kept: how many sessions may stay on clones.
        shared: SQL of the digest of the state that all databases share.
        is_idle: whether every clone is clean, so that what is written now need not be read.

    Attributes:
        inspector: of the server.
    """

    def __init__(
        self,
        gateway: Gateway,
        make_reference: Callable[[str], Awaitable[str]],
        major: int,
        most_kept: int = MOST_KEPT_SESSIONS,
        shared: str = NOTHING_SHARED,
        is_idle: Callable[[], bool] = lambda: False,
    ) -> None:
        self._gateway = gateway
        self._major = major
        self._settings = settings_of(major)
        self.inspector = Inspector(gateway, major, self._settings, shared, is_idle)
        self._baselines = Baselines(gateway, major, make_reference, self._settings)
        self._kept = KeptSessions(most_kept)
        self._states: dict[str, CleanState] = {}
        self._server_epoch = 0
        self._rewinds = 0

    # The server ---------------------------------------------------------------------------

    def server_lost(self) -> None:
        """Forget all clean states: the server may have crashed."""
        self._server_epoch += 1
        self.inspector.reader.lose()

    async def catch_up(self) -> None:
        """Read the WAL up to now if there is much of it, before the server removes it.

        Raises:
            ServerUnavailableError, StatementError: the server did not answer.
        """
        await self.inspector.catch_up()

    async def close(self) -> None:
        """Drop the reference clones, and stop reading the WAL."""
        await self.inspector.close()
        await self._baselines.close()

    # Generations --------------------------------------------------------------------------

    async def ensure_baseline(self, generation: str) -> None:
        """Read what a generation holds from a new copy, unless it is known.

        This takes connections, so it must not be called while holding one.

        Raises:
            PinError: the copy is not what the generation was when it was pinned.
            CannotRewindError: no copy could be made.
            ServerUnavailableError, StatementError: it is not known.
        """
        await self._baselines.ensure(generation)

    def record_recreate(self, generation: str, seconds: float) -> None:
        """Record how long making a clone of a generation took."""
        self._baselines.costs(generation).record_recreate(seconds)

    def generation_rebuilt(self, generation: str) -> None:
        """Forget what a generation of that name held: it was rebuilt, with other OIDs.

        Clones of the former build are still rewound to that.
        """
        self._baselines.rebuilt(generation)

    async def generation_retired(self, generation: str) -> None:
        """Forget a generation of which no more clones are made, and drop its reference clone.

        Raises:
            ServerUnavailableError, StatementError: the drop is tried again with the next one.
        """
        await self._baselines.retired(generation)

    # Clones -------------------------------------------------------------------------------

    async def track(self, clone: str, generation: str) -> None:
        """Record that a new clone is clean; it must never have been leased.

        From the first one of a generation, what the generation holds is read, too.

        Args:
            clone: its name.
            generation: the database that it is a clone of.

        Raises:
            PinError: the clone is not what the generation was when it was pinned.
            ServerUnavailableError, StatementError: the clone cannot be rewound.
        """
        build = self._baselines.current(generation)
        baseline = await self._baselines.of_clone(clone, generation)
        await self._track(clone, build, baseline)

    async def track_adopted(self, clone: str, generation: str) -> None:
        """Verify a clone of an earlier daemon, and record that it is clean.

        `ensure_baseline` must have succeeded. Tables whose digest is not known are not compared: a
        clone with such tables must not have been leased.

        Raises:
            VerificationError: it is not what its generation is.
            ServerUnavailableError, StatementError: the clone cannot be rewound.
        """
        baseline = self._baselines.known(generation)
        await self._track(clone, self._baselines.current(generation), baseline)
        state = self._states[clone]
        try:
            async with self._gateway.session(clone, self._settings) as session:
                await verify(session, baseline, (state.facts, state.facts), None)
                await locate_rows(session, baseline, state.history)
        except BaseException:
            self.forget(clone)
            raise

    async def _track(self, clone: str, build: Build, baseline: Baseline) -> None:
        server_epoch = self._server_epoch
        try:
            inspection = await self.inspector.inspect(clone, follow=True)
        except BaseException:
            # Its touched pages may be followed already, and would never be forgotten.
            databases = {state.facts.oid for state in self._states.values()}
            self.inspector.reader.touched_pages.retain(databases)
            raise
        self._states[clone] = CleanState(
            build=build,
            baseline=baseline,
            facts=inspection.facts,
            clean_lsn=inspection.position,
            inspected_lsn=inspection.position,
            clean_xid=int(inspection.facts.activity.next_xid),
            files=baseline.files,
            server_epoch=server_epoch,
        )

    def clean_state(self, clone: str) -> CleanState | None:
        """Return the state in which a clone was last clean; None if it is not known."""
        return self._states.get(clone)

    def forget(self, clone: str) -> None:
        """Forget a clone that is gone, or about to go."""
        self.close_session(clone)
        state = self._states.pop(clone, None)
        if state is not None:
            self.inspector.reader.touched_pages.forget(state.facts.oid)

    def has_moved_rows(self, clone: str) -> bool:
        """Say whether rows of tables that are not kept in memory have moved in this clone.

        Only this object knows where to. A later daemon would put such rows back a second
        time.
        """
        state = self._states.get(clone)
        return state is not None and state.has_moved_rows

    def can_be_adopted(self, clone: str) -> bool:
        """Say whether a later daemon could verify that this clone is clean."""
        state = self._states.get(clone)
        return state is not None and state.baseline.has_all_digests and not state.has_moved_rows

    # Sessions that stay on clones ---------------------------------------------------------

    @property
    def clones_with_session(self) -> set[str]:
        """Names of the clones on which a session stays."""
        return self._kept.clones

    def close_session(self, clone: str) -> None:
        """End the session that stays on a clone, if there is one; the next rewind connects anew."""
        self._kept.close(clone)

    def backend_pid(self, clone: str) -> int:
        """Return the process id of the backend that stays on a clone; 0 for none."""
        return self._kept.backend_pid(clone)

    # Rewinds ------------------------------------------------------------------------------

    async def inspect(
        self, clone: str, *, lock_out: str = "", with_shared: bool = True
    ) -> Inspection:
        """Inspect a clone that came back, and read the WAL up to now.

        Args:
            clone: its name.
            lock_out: statements that lock the former holder out; they are committed first.
            with_shared: whether to ask for the digest of the state that all databases share.

        Raises:
            LockOutError: `lock_out` was refused.
            ServerUnavailableError, StatementError: the server did not answer.
        """
        return await self.inspector.inspect(
            clone, self.backend_pid(clone), lock_out=lock_out, with_shared=with_shared
        )

    async def rewind(
        self,
        clone: str,
        facts: dict[str, Any],
        *,
        inspection: Inspection | None = None,
        verify_every: int = 0,
        stay_connected: bool = False,
    ) -> Rewound:
        """Put back what a lease changed. Its sessions must be gone.

        After a failure the clone has no clean state.

        Args:
            clone: its name.
            facts: what its comment is to say.
            inspection: made after its last session was gone; None to inspect it now.
            verify_every: rewinds after which the clone is compared with its generation; 0 for
                never.
            stay_connected: whether to keep the session for the next rewind.

        Raises:
            VerificationError: it differs from its generation after the rewind; not to be granted.
            CannotRewindError: it has to be recreated; says why.
            ServerUnavailableError: it is in an unknown state and has to be recreated.
        """
        began = time.monotonic()
        inspection = inspection or await self.inspect(clone, with_shared=False)
        state = self._states.pop(clone, None)  # it has no clean state until this has succeeded
        self._kept.take(clone)
        if state is None:
            raise CannotRewindError("its clean state is not known")
        pass_ = RewindPass(
            self._gateway,
            self.inspector,
            self._baselines,
            self._settings,
            self._major,
            clone,
            state,
        )
        touched_pages = self.inspector.reader.touched_pages
        try:
            inspection = await pass_.inspect_cleared(inspection)
            self._check_continuity(state)
            changes, touched = pass_.changes()
            self._rewinds += 1
            verified = verify_every > 0 and self._rewinds % verify_every == 0
            done = await pass_.restore(inspection, changes, touched, verified=verified)
            if state.facts.entries.comment != inspection.facts.entries.comment:
                await annotate(self._gateway, clone, facts)
            self._check_continuity(state)
        except BaseException:
            state.close_session()
            touched_pages.forget(state.facts.oid)
            raise
        touched_pages.forget_before(state.facts.oid, state.inspected_lsn)
        self._states[clone] = state
        if state.session is not None and stay_connected:
            self._kept.keep(clone, state)
        else:
            state.close_session()
        return Rewound(done.tables, len(changes.sequences), time.monotonic() - began)

    def _check_continuity(self, state: CleanState) -> None:
        """Check that the WAL was read without a gap since the clone was last clean."""
        lost = state.server_epoch != self._server_epoch
        if lost or not self.inspector.reader.covers(state.clean_lsn):
            raise CannotRewindError("the server was away since it was clean, or its WAL is gone")
