"""Keeps the measure of each generation and of each clean clone, and rewinds by them.

All of it is in memory: a clone of an earlier daemon has no measure, and is recreated when it comes
back, unless it was parked, and so measured again when it was adopted.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import structlog

from clonepool.errors import StatementError
from clonepool.postgres.clones import leftovers
from clonepool.postgres.databases import annotate, read_comment
from clonepool.postgres.rewind.adopted import find_rows
from clonepool.postgres.rewind.baseline import Baseline, read_baseline
from clonepool.postgres.rewind.changes import (
    is_catalog,
    sort_out,
    sort_out_again,
    with_unlogged,
)
from clonepool.postgres.rewind.checks import check_catalogs, check_tables
from clonepool.postgres.rewind.cost import Economy
from clonepool.postgres.rewind.database_facts import NOTHING_SHARED, Facts, read_entries
from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError, PinError
from clonepool.postgres.rewind.inspection import Inspector, Look
from clonepool.postgres.rewind.reference import References
from clonepool.postgres.rewind.relations import read_files
from clonepool.postgres.rewind.restore import NOTHING_UNDONE, Rows, Undo, Undone
from clonepool.postgres.rewind.settings import PLANNED_ONCE, PREPARED, settings_of
from clonepool.postgres.rewind.verify import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from clonepool.postgres.gateway import Gateway, Session
    from clonepool.postgres.rewind.baseline import Table
    from clonepool.postgres.rewind.changes import Changes
    from clonepool.postgres.rewind.reference import Reference
    from clonepool.postgres.rewind.relations import Files
    from clonepool.postgres.rewind.touched_pages import File

    Touched = dict[File, set[int] | None]

log = structlog.get_logger()

BLOAT_FACTOR = 1
BLOAT_BYTES = 8 * 1024 * 1024
"""A clone is recreated when its tables take so many times more than at first, and so much."""
MOST_MOVED_BYTES = 64 * 1024 * 1024
"""A clone is recreated when so much of its large tables was put back elsewhere."""
PINNED = "pinned"
"""Key of a generation's comment."""
MOST_KEPT_SESSIONS = 32
LEAVING_SECONDS = 1.0
"""How long a session of ours may take to leave a clone."""


class Measure(msgspec.Struct):
    """A clone as it was when it was last clean.

    Attributes:
        generation: whose clone it is.
        build: how often that was built by then.
        pristine: what that holds.
        facts: of the database itself.
        at: position in the log from which on whatever was written is a change.
        looked_at: position up to which it was read before the last undo, which writes to no catalog
            but pg_class: from there on, what was written to others is a change.
        clean_xid: the first transaction number after it.
        files: which relation each file belongs to.
        rows: what is remembered of its rows.
        session: to the clone, where it is kept from one rewind to the next.
        epoch: of the server's life, counted by `Rewinder.server_lost`.
    """

    generation: str
    build: int
    pristine: Baseline
    facts: Facts
    at: int
    looked_at: int
    clean_xid: int
    files: Files
    epoch: int
    rows: Rows = msgspec.field(default_factory=Rows)
    session: Session | None = None

    def hang_up(self) -> None:
        """Give up the session that is kept."""
        if self.session is not None:
            self.session.abort()
            self.session = None


class Rewound(msgspec.Struct, frozen=True):
    """What a rewind did, for metrics and logs."""

    tables: int
    sequences: int
    seconds: float


class Rewinder:
    """Rewinds the clones of one server.

    Args:
        gateway: the way to it.
        make_reference: copies the generation of that name into a database that nobody will lease,
            and returns its name.
        major: the server's version.
        most_kept: how many sessions may stay on clones; those on the clones that were rewound
            longest ago are given up for others.
        shared: SQL of one text that stands for the server as a whole, for `look` to tell.
        is_idle: whether every clone is clean: what is then written into the log is not read.
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
        self._most_kept = most_kept
        self._kept: dict[str, Measure] = {}
        self._settings = settings_of(major)
        self._lookout = Inspector(gateway, major, self._settings, shared, is_idle)
        self._references = References(gateway, make_reference, self._settings)
        self._pristine: dict[str, Baseline] = {}
        self._economies: defaultdict[str, Economy] = defaultdict(Economy)
        self._measures: dict[str, Measure] = {}
        self._epoch = 0
        self._rewinds = 0
        self._builds: Counter[str] = Counter()
        self._reading: dict[str, anyio.Lock] = {}

    def server_lost(self) -> None:
        """Trust nothing from before: the server may have crashed."""
        self._epoch += 1
        self._lookout.lose()

    def forget(self, clone: str) -> None:
        """Forget a clone that is gone, or about to go."""
        self.step_aside(clone)
        measure = self._measures.pop(clone, None)
        if measure is not None:
            self._lookout.ledger.forget(measure.facts.oid)

    def has_moved_rows(self, clone: str) -> bool:
        """Say whether rows of large tables live elsewhere in this clone than in its generation.

        Only this object knows where. A clone that is to be measured anew, by a later daemon say,
        must not have any: they would be put back a second time.
        """
        measure = self._measures.get(clone)
        if measure is None:
            return False
        tables = measure.pristine.tables
        return any(
            tables[oid].rows is None and not layout.is_original
            for oid, layout in measure.rows.layouts.items()
        )

    @property
    def kept(self) -> set[str]:
        """The clones on which a session of ours stays."""
        return set(self._kept)

    def step_aside(self, clone: str) -> None:
        """Give up the session that stays on a clone, if there is one; the next rewind connects."""
        measure = self._kept.pop(clone, None)
        if measure is not None:
            measure.hang_up()

    def backend(self, clone: str) -> int:
        """Return the process id of the backend that is kept on a clone, 0 for none."""
        measure = self._kept.get(clone)
        session = measure.session if measure is not None else None
        return session.pid if session is not None and session.usable else 0

    def _keep(self, clone: str, measure: Measure) -> None:
        """Let the session of this clone stay, and none of those that stay for longest."""
        self._kept[clone] = measure
        while len(self._kept) > self._most_kept:
            self.step_aside(next(iter(self._kept)))

    async def look(self, clone: str, *, first: str = "", at_server: bool = True) -> Look:
        """Look at a clone that came back, and read the log up to now.

        Args:
            clone: its name.
            first: statements that lock out who had it, to be committed before.
            at_server: whether to look at the server as a whole, too.

        Raises:
            LockOutError: `first` was refused.
            ServerUnavailableError, StatementError: the server does not say.
        """
        return await self._lookout.look(
            clone, self.backend(clone), first=first, at_server=at_server
        )

    async def catch_up(self) -> None:
        """Read the log up to now if there is much of it, so that none is thrown away unread.

        Raises:
            ServerUnavailableError, StatementError: the server does not say.
        """
        await self._lookout.catch_up()

    def recreated(self, generation: str, seconds: float) -> None:
        """Take in what making a clone of a generation took."""
        self._economies[generation].recreated(seconds)

    def built(self, generation: str) -> None:
        """Forget what a generation of that name held: it was built anew, with other OIDs.

        Clones of the one before go on by their own measure.
        """
        self._pristine.pop(generation, None)
        self._economies.pop(generation, None)
        self._references.forget(generation)
        self._builds[generation] += 1

    async def retire(self, generation: str) -> None:
        """Forget a generation of which no more clones are made, and drop its reference.

        Raises:
            ServerUnavailableError, StatementError: it is tried again with the next.
        """
        self._pristine.pop(generation, None)
        self._economies.pop(generation, None)
        await self._references.drop(generation)

    async def close(self) -> None:
        """Drop the references, and stop reading the log."""
        await self._lookout.close()
        await self._references.close()

    async def measure(self, clone: str, generation: str) -> None:
        """Take the measure of a clone that was just made, and is nobody's.

        Of the first one of a generation it is also read what that holds, and pinned: nobody ever
        had this one.

        Args:
            clone: its name.
            generation: the database it is a clone of.

        Raises:
            PinError: a copy of the generation is not what the generation was when it was pinned.
            ServerUnavailableError, StatementError: there is no measure.
        """
        build = self._builds[generation]
        pristine = self._pristine.get(generation)
        if pristine is None:
            async with self._gateway.session(clone, self._settings) as session:
                pristine = await self._know(generation, session)
        await self._measure(clone, generation, build, pristine)

    async def know(self, generation: str) -> None:
        """See that it is known what a generation holds: if need be it is read from a new copy.

        It takes connections, so that it must not be called while holding one.

        Raises:
            PinError: the copy is not what the generation was when it was pinned.
            CannotRewindError: no copy could be made.
            ServerUnavailableError, StatementError: it is not known.
        """
        async with self._reading.setdefault(f"copy of {generation}", anyio.Lock()):
            if generation in self._pristine:
                return
            await self._references.ensure(generation)
            async with self._references.of(generation) as reference:
                pristine = await self._know(generation, reference.session)
            if not pristine.needs_reference:
                await self._references.drop(generation)

    async def measure_found(self, clone: str, generation: str) -> None:
        """Take the measure of a clone that an earlier daemon left, if it is clean indeed.

        It is compared with what `know` found as a proof compares, but for tables of which no digest
        is kept: a clone with such tables must not have been leased.

        Raises:
            VerificationError: it is not what its generation is.
            ServerUnavailableError, StatementError: there is no measure.
        """
        pristine = self._pristine[generation]
        await self._measure(clone, generation, self._builds[generation], pristine)
        measure = self._measures[clone]
        try:
            async with self._gateway.session(clone, self._settings) as session:
                await verify(session, pristine, (measure.facts, measure.facts), None)
                await find_rows(session, pristine, measure.rows)
        except BaseException:
            self.forget(clone)
            raise

    def is_provable(self, clone: str) -> bool:
        """Say whether a later daemon could see that this clone is clean, and go on with it."""
        measure = self._measures.get(clone)
        known = measure is not None and measure.pristine.is_small
        return known and not self.has_moved_rows(clone)

    async def _know(self, generation: str, session: Session) -> Baseline:
        """Return what a generation holds, read from a copy of it that nobody ever had."""
        async with self._reading.setdefault(generation, anyio.Lock()):
            pristine = self._pristine.get(generation)
            if pristine is None:
                build = self._builds[generation]
                pristine = await read_baseline(session, self._major)
                if build == self._builds[generation]:
                    await self._pin(generation, pristine.pin)
                    self._pristine[generation] = pristine
        return pristine

    async def _pin(self, generation: str, pin: str) -> None:
        """Write down what stands for all that a generation holds, or compare what was written."""
        facts = await read_comment(self._gateway, generation)
        pinned = facts.get(PINNED)
        if pinned is None and facts:
            await annotate(self._gateway, generation, {**facts, PINNED: pin})
        elif pinned != pin:
            raise PinError(f"a copy of {generation} is not what that was when it was built")

    async def _measure(self, clone: str, generation: str, build: int, pristine: Baseline) -> None:
        epoch = self._epoch
        try:
            look = await self._lookout.look(clone, follow=True)
        except BaseException:
            # It may be followed already, and nobody would ever forget it.
            self._lookout.ledger.keep({each.facts.oid for each in self._measures.values()})
            raise
        self._measures[clone] = Measure(
            generation,
            build,
            pristine,
            look.facts,
            look.upto,
            look.upto,
            int(look.facts.presence.next_xid),
            pristine.files,
            epoch,
        )

    async def rewind(
        self,
        clone: str,
        facts: dict[str, Any],
        *,
        seen: Look | None = None,
        verify_every: int = 0,
        stay_connected: bool = False,
    ) -> Rewound:
        """Undo what a lease changed. Its sessions must be gone.

        Args:
            clone: its name.
            facts: what its comment is to say.
            seen: what `look` said since its last session left.
            verify_every: one in so many rewound clones is compared with its generation in full; 0
                for none.
            stay_connected: keep the session for the next rewind: connecting is most of the cost.

        Raises:
            VerificationError: it was rewound and is not what it should be: nobody may have it.
            CannotRewindError: it is to be recreated; says why.
            ServerUnavailableError: it is in an unknown state: recreate it.
        """
        began = time.monotonic()
        seen = seen or await self.look(clone, at_server=False)
        measure = self._measures.pop(clone, None)  # whatever goes wrong, it is not clean any more
        self._kept.pop(clone, None)
        if measure is None:
            raise CannotRewindError("its measure was never taken")
        try:
            look = await self._clear(clone, measure, seen)
            touch, touched = self._touch(measure)
            done = await self._undo(clone, measure, look, touch, touched, verify_every=verify_every)
            if measure.facts.entries.comment != look.facts.entries.comment:
                await annotate(self._gateway, clone, facts)
            self._see_that_nothing_was_lost(measure)
        except BaseException:
            measure.hang_up()
            self._lookout.ledger.forget(measure.facts.oid)
            raise
        self._lookout.ledger.settle(measure.facts.oid, measure.looked_at)
        self._measures[clone] = measure
        if measure.session is not None and stay_connected:
            self._keep(clone, measure)
        else:
            measure.hang_up()
        return Rewound(done.tables, len(touch.sequences), time.monotonic() - began)

    def _see_that_nothing_was_lost(self, measure: Measure) -> None:
        if measure.epoch != self._epoch or not self._lookout.covers(measure.at):
            raise CannotRewindError("the server was away since it was clean, or its log is gone")

    def _touch(self, measure: Measure) -> tuple[Changes, Touched]:
        """Return what the log says of a clone."""
        self._see_that_nothing_was_lost(measure)
        if measure.pristine.obstacle:
            raise CannotRewindError(measure.pristine.obstacle)
        ledger, oid = self._lookout.ledger, measure.facts.oid
        touched, early = ledger.touched(oid, measure.at), ledger.touched(oid, measure.looked_at)
        if touched is None or early is None:
            raise CannotRewindError("more files were written to than are followed")
        touched |= {file: pages for file, pages in early.items() if is_catalog(measure.files, file)}
        return with_unlogged(sort_out(measure.files, touched), measure.pristine), touched

    async def _clear(self, clone: str, measure: Measure, look: Look) -> Look:
        """Clear away what outlives sessions; return what is known of the clone then."""
        try:
            look.facts.check(measure.facts)
        except LeftoversError:
            cleared = await leftovers.clear(self._gateway, clone)
            log.info("clone.leftovers_cleared", clone=clone, found=cleared)
            look = await self._look_again(clone, measure)
            look.facts.check(measure.facts)
        return look

    async def _look_again(self, clone: str, measure: Measure) -> Look:
        """Look at a clone, and again while a session of ours that was just closed is leaving."""
        session = measure.session
        ours = session.pid if session is not None and session.usable else 0
        until = anyio.current_time() + LEAVING_SECONDS
        while True:
            look = await self._lookout.look(clone, ours)
            if not look.facts.presence.others or anyio.current_time() > until:
                return look
            await anyio.sleep(0.005)

    async def _undo(
        self,
        clone: str,
        measure: Measure,
        look: Look,
        touch: Changes,
        touched: Touched,
        *,
        verify_every: int,
    ) -> Undone:
        """Put back what was touched; where nothing was, PostgreSQL is asked nothing more."""
        self._rewinds += 1
        verify = verify_every > 0 and self._rewinds % verify_every == 0
        if look.facts.presence.others:
            raise CannotRewindError("somebody else is connected")
        if touch.nothing and not verify:
            measure.at = measure.looked_at = look.upto
            return NOTHING_UNDONE
        economy = self._economies[measure.generation]
        pages = touch.pages(measure.pristine)
        if not economy.is_worth_it(pages):
            raise CannotRewindError(f"{pages} pages were touched: a new clone costs less")
        await self._ensure_reference(measure, touch)
        async with self._session(clone, measure) as session:
            began = time.monotonic()
            done = await self._undo_once(session, measure, look.upto, touch, touched, economy)
            economy.rewound(done.pages, done.rows, time.monotonic() - began)
            if verify:
                await self._verify(session, measure, look.facts)
        if measure.rows.more_bytes > BLOAT_FACTOR * measure.pristine.size + BLOAT_BYTES:
            raise CannotRewindError(f"it has grown by {measure.rows.more_bytes} bytes")
        if measure.rows.moved_bytes > MOST_MOVED_BYTES:
            raise CannotRewindError(f"{measure.rows.moved_bytes} bytes were put back elsewhere")
        return done

    async def _undo_once(
        self,
        session: Session,
        measure: Measure,
        upto: int,
        touch: Changes,
        touched: Touched,
        economy: Economy,
    ) -> Undone:
        pristine = measure.pristine
        if touch.strange:
            files = await read_files(session)
            touch = with_unlogged(sort_out_again(measure.files, files, touched), pristine)
            measure.files = files
        await check_catalogs(session, pristine, touch)
        check_tables(pristine, touch)

        def worth(rows: int) -> None:
            if not economy.is_worth_it(0, rows):
                raise CannotRewindError(f"{rows} rows were changed: a new clone costs less")

        undo = Undo(
            session,
            measure.facts.oid,
            pristine,
            measure.rows,
            measure.clean_xid,
            lambda: self._reference(measure),
            self._major,
        )
        done = await undo.run(touch, worth)
        measure.at, measure.clean_xid = done.at, done.clean_xid
        measure.looked_at = upto
        return done

    async def _ensure_reference(self, measure: Measure, touch: Changes) -> None:
        """See that there is a reference, where one may be needed, before a session is opened."""
        tables = measure.pristine.tables
        needed = touch.strange or any(not tables[oid].is_kept for oid in touch.tables)
        current = measure.build == self._builds[measure.generation]
        if needed and current and measure.pristine.needs_reference:
            await self._references.ensure(measure.generation)

    @asynccontextmanager
    async def _session(self, clone: str, measure: Measure) -> AsyncIterator[Session]:
        """Lend the session to a clone; afterwards it is still there."""
        session, measure.session = measure.session, None
        if session is None or not session.usable:
            settings = {**self._settings, **PLANNED_ONCE}
            session = await self._gateway.connect(clone, settings=settings, statements=PREPARED)
        try:
            yield session
        except StatementError as error:
            await session.close()
            # Something is not there any more, say, or a constraint refuses what it once let pass.
            raise CannotRewindError(str(error)) from error
        except BaseException:
            await session.close()
            raise
        measure.session = session

    @asynccontextmanager
    async def _reference(self, measure: Measure) -> AsyncIterator[Reference]:
        """Lend the reference of a clone's generation, if that is still what it was."""
        if measure.build != self._builds[measure.generation]:
            raise CannotRewindError("its generation was built anew")
        async with self._references.of(measure.generation) as reference:
            yield reference

    async def _verify(self, session: Session, measure: Measure, found: Facts) -> None:
        async def digest(table: Table) -> str:
            async with self._reference(measure) as reference:
                return await reference.digest(table)

        now = Facts(found.presence, await read_entries(session))
        await verify(session, measure.pristine, (now, measure.facts), digest)
