"""Keeps the measure of each generation and of each clean clone, and rewinds by them.

All of it is in memory: a clone of an earlier daemon has no measure, and is recreated when it comes
back, unless it was parked, and so measured again when it was adopted.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import msgspec
import structlog

from clonepool.errors import ServerUnavailableError, StatementError
from clonepool.postgres import leftovers
from clonepool.postgres.databases import annotate, read_comment
from clonepool.postgres.rewind.changes import find_changes
from clonepool.postgres.rewind.errors import CannotRewindError, LeftoversError, PinError
from clonepool.postgres.rewind.facts import (
    NOTHING_SHARED,
    Facts,
    read_facts,
    read_facts_inside,
)
from clonepool.postgres.rewind.pages import wal_position
from clonepool.postgres.rewind.pristine import Pristine, read_pristine
from clonepool.postgres.rewind.proof import prove
from clonepool.postgres.rewind.reference import References
from clonepool.postgres.rewind.settings import settings_of
from clonepool.postgres.rewind.survey import (
    CrowdedError,
    Survey,
    lines_without,
    read_line,
    read_survey,
    survey_sql,
    take_survey,
)
from clonepool.postgres.rewind.undo import Done, LargeTables, SmallTables, Undo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from clonepool.postgres.gateway import Gateway, Session
    from clonepool.postgres.rewind.changes import Changes
    from clonepool.postgres.rewind.pristine import Table
    from clonepool.postgres.rewind.reference import Reference

log = structlog.get_logger()

BLOAT_FACTOR = 2
BLOAT_BYTES = 8 * 1024 * 1024
"""A clone is recreated when it takes so many times what it took at first, and so much more."""
PINNED = "pinned"
"""Key of a generation's comment."""
_CORRUPTED = "XX001"
_PREPARED = 8
"""On a session that stays the same look is taken again and again."""
MOST_KEPT_SESSIONS = 32
MOST_MOVED_BYTES = 64 * 1024 * 1024
"""A clone is recreated when so much of its large tables was put back elsewhere."""


class Measure(msgspec.Struct):
    """A clone as it was when it was last clean.

    Attributes:
        generation: whose clone it is.
        build: how often that was built by then.
        pristine: what that holds.
        facts: of the database itself.
        survey: of what is in it.
        unsettled: relations that could change without a sign.
        small: what is remembered of its small tables.
        large: what is remembered of its large tables.
        first_bytes: what it took when it was made.
        bytes: what it takes.
        session: to the clone, where it is kept from one rewind to the next.
        epoch: of the server's life, counted by `Rewinder.server_lost`.
    """

    generation: str
    build: int
    pristine: Pristine
    facts: Facts
    survey: Survey
    unsettled: set[int]
    large: LargeTables
    first_bytes: int
    bytes: int
    epoch: int
    small: SmallTables = msgspec.field(default_factory=SmallTables)
    session: Session | None = None

    def hang_up(self) -> None:
        """Give up the session that is kept."""
        if self.session is not None:
            self.session.abort()
            self.session = None


class Seen(NamedTuple):
    """A returned clone, looked at once.

    Attributes:
        facts: of the database itself.
        survey: of what is in it, where a session that stays there could tell at the same time.
    """

    facts: Facts
    survey: Survey | None = None


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
    """

    def __init__(
        self,
        gateway: Gateway,
        make_reference: Callable[[str], Awaitable[str]],
        major: int,
        most_kept: int = MOST_KEPT_SESSIONS,
        shared: str = NOTHING_SHARED,
    ) -> None:
        self._gateway = gateway
        self._major = major
        self._most_kept = most_kept
        self._shared = shared
        self._kept: dict[str, Measure] = {}
        self._settings = settings_of(major)
        self._references = References(gateway, make_reference, self._settings)
        self._pristine: dict[str, Pristine] = {}
        self._measures: dict[str, Measure] = {}
        self._epoch = 0
        self._rewinds = 0
        self._builds: Counter[str] = Counter()
        self._reading: dict[str, anyio.Lock] = {}

    def server_lost(self) -> None:
        """Trust no counter from before: the server may have crashed and lost them."""
        self._epoch += 1

    def forget(self, clone: str) -> None:
        """Forget a clone that is gone, or about to go."""
        self.step_aside(clone)
        self._measures.pop(clone, None)

    def has_moved_rows(self, clone: str) -> bool:
        """Say whether rows of large tables live elsewhere in this clone than in its generation.

        Only this object knows where. A clone that is to be measured anew, by a later daemon say,
        must not have any: they would be put back a second time.
        """
        measure = self._measures.get(clone)
        places = measure.large.displaced.values() if measure is not None else ()
        return any(known is None or known.batches for known in places)

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
        session = self.kept_session(clone)
        return session.pid if session is not None else 0

    def kept_session(self, clone: str) -> Session | None:
        """Return the session that is kept on a clone, None if there is none to be used."""
        measure = self._kept.get(clone)
        session = measure.session if measure is not None else None
        return session if session is not None and session.usable else None

    def _keep(self, clone: str, measure: Measure) -> None:
        """Let the session of this clone stay, and none of those that stay for longest."""
        self._kept[clone] = measure
        while len(self._kept) > self._most_kept:
            self.step_aside(next(iter(self._kept)))

    async def look(self, clone: str, *, at_server: bool = True) -> Seen:
        """Look at a clone that came back, in one round trip where a session stays on it.

        Args:
            clone: its name.
            at_server: whether to look at the server as a whole, too.

        Raises:
            ServerUnavailableError, StatementError: the server does not say.
        """
        session = self.kept_session(clone)
        shared = self._shared if at_server else NOTHING_SHARED
        if session is not None:
            try:
                facts, text = await read_facts_inside(session, survey_sql(self._major), shared)
            except ServerUnavailableError:
                self.step_aside(clone)  # the lease may have ended our session: anew, then
            else:
                return Seen(facts, read_survey(text) if text else None)
        return Seen(await read_facts(self._gateway, clone, shared=shared))

    def built(self, generation: str) -> None:
        """Forget what a generation of that name held: it was built anew, with other OIDs.

        Clones of the one before go on by their own measure.
        """
        self._pristine.pop(generation, None)
        self._references.forget(generation)
        self._builds[generation] += 1

    async def retire(self, generation: str) -> None:
        """Forget a generation of which no more clones are made, and drop its reference.

        Raises:
            ServerUnavailableError, StatementError: it is tried again with the next.
        """
        self._pristine.pop(generation, None)
        await self._references.drop(generation)

    async def close(self) -> None:
        """Drop the references."""
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
        async with self._gateway.session(clone, self._settings) as session:
            pristine = await self._know(generation, session)
            await self._measure(clone, generation, pristine, session)

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
            if not _has_pages(pristine):
                await self._references.drop(generation)

    async def measure_found(self, clone: str, generation: str) -> None:
        """Take the measure of a clone that an earlier daemon left, if it is clean indeed.

        It is compared with what `know` found as a proof compares, but for tables of which no digest
        is kept: a clone with such tables must not have been leased.

        Raises:
            ProofError: it is not what its generation is.
            ServerUnavailableError, StatementError: there is no measure.
        """
        pristine = self._pristine[generation]
        async with self._gateway.session(clone, self._settings) as session:
            await self._measure(clone, generation, pristine, session)
            facts = self._measures[clone].facts
            try:
                await prove(session, pristine, (facts, facts), None)
            except BaseException:
                del self._measures[clone]
                raise

    def is_provable(self, clone: str) -> bool:
        """Say whether a later daemon could see that this clone is clean, and go on with it."""
        measure = self._measures.get(clone)
        known = measure is not None and measure.pristine.is_small
        return known and not self.has_moved_rows(clone)

    async def _know(self, generation: str, session: Session) -> Pristine:
        """Return what a generation holds, read from a copy of it that nobody ever had."""
        async with self._reading.setdefault(generation, anyio.Lock()):
            pristine = self._pristine.get(generation)
            if pristine is None:
                pristine = await read_pristine(session, self._major)
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

    async def _measure(
        self, clone: str, generation: str, pristine: Pristine, session: Session
    ) -> None:
        epoch, build = self._epoch, self._builds[generation]
        survey = await take_survey(session, self._major)
        clean_at = await wal_position(session)
        lines = [read_line(line) for line in survey.lines]
        sequences = [line for line in lines if line.oid in pristine.values]
        if any(line.value != pristine.values[line.oid] for line in sequences):
            raise StatementError("sequences do not say what is expected", sqlstate=_CORRUPTED)
        size = sum(line.size for line in lines)
        self._measures[clone] = Measure(
            generation,
            build,
            pristine,
            await read_facts(self._gateway, clone),
            survey,
            {line.oid for line in lines if not line.settled},
            LargeTables(clean_at),
            first_bytes=size,
            bytes=size,
            epoch=epoch,
        )

    async def rewind(
        self,
        clone: str,
        facts: dict[str, Any],
        *,
        seen: Seen | None = None,
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
            ProofError: it was rewound and is not what it should be: nobody may have it.
            CannotRewindError: it is to be recreated; says why.
            ServerUnavailableError: it is in an unknown state: recreate it.
        """
        measure = self._measures.pop(clone, None)  # whatever goes wrong, it is not clean any more
        self._kept.pop(clone, None)
        if measure is None or measure.epoch != self._epoch:
            if measure is not None:
                measure.hang_up()
            raise CannotRewindError("its measure was never taken, or the server was away since")
        began = time.monotonic()
        try:
            found, survey = await self._clear(clone, measure.facts, seen)
            changes = await self._rewind(
                clone,
                measure,
                found,
                survey,
                verify_every=verify_every,
                stay_connected=stay_connected,
            )
            if measure.facts.comment != found.comment:
                await annotate(self._gateway, clone, facts)
            self._see_that_nothing_was_lost(measure)
        except BaseException:
            measure.hang_up()
            raise
        self._measures[clone] = measure
        if measure.session is not None:
            self._keep(clone, measure)
        return Rewound(len(changes.tables), len(changes.sequences), time.monotonic() - began)

    def _see_that_nothing_was_lost(self, measure: Measure) -> None:
        if measure.epoch != self._epoch:
            raise CannotRewindError("the server was away meanwhile")

    async def _rewind(
        self,
        clone: str,
        measure: Measure,
        found: Facts,
        survey: Survey | None,
        *,
        verify_every: int,
        stay_connected: bool,
    ) -> Changes:
        if _has_pages(measure.pristine) and measure.build == self._builds[measure.generation]:
            await self._references.ensure(measure.generation)
        async with self._session(clone, measure, stay_connected=stay_connected) as session:
            changes = await self._rewind_once(session, measure, survey)
            self._rewinds += 1
            if verify_every and self._rewinds % verify_every == 0:
                await self._prove(session, measure, found)
        if measure.bytes > BLOAT_FACTOR * measure.first_bytes + BLOAT_BYTES:
            raise CannotRewindError(f"it has grown to {measure.bytes} bytes")
        if measure.large.moved_bytes > MOST_MOVED_BYTES:
            raise CannotRewindError(f"{measure.large.moved_bytes} bytes were put back elsewhere")
        return changes

    async def _clear(
        self, clone: str, before: Facts, seen: Seen | None
    ) -> tuple[Facts, Survey | None]:
        """Clear away what outlives sessions; return what is known of the clone then."""
        found, survey = seen or Seen(await read_facts(self._gateway, clone))
        try:
            found.check(before)
        except LeftoversError:
            cleared = await leftovers.clear(self._gateway, clone)
            log.info("clone.leftovers_cleared", clone=clone, found=cleared)
            found = await read_facts(self._gateway, clone)
            found.check(before)
            survey = None
        return found, survey

    @asynccontextmanager
    async def _session(
        self, clone: str, measure: Measure, *, stay_connected: bool
    ) -> AsyncIterator[Session]:
        try:
            if stay_connected or measure.session is not None:
                async with self._staying(clone, measure) as session:
                    yield session
            else:
                # It has done its work: whoever gets the clone need not wait until it is gone.
                async with self._gateway.session(clone, self._settings, awaited=False) as session:
                    yield session
        except CrowdedError:
            raise CannotRewindError("somebody else is connected") from None
        except StatementError as error:
            # Something is not there any more, say, or a constraint refuses what it once let pass.
            raise CannotRewindError(str(error)) from error

    @asynccontextmanager
    async def _staying(self, clone: str, measure: Measure) -> AsyncIterator[Session]:
        session, measure.session = measure.session, None
        if session is None or not session.usable:
            session = await self._gateway.connect(
                clone, settings=self._settings, statements=_PREPARED
            )
        try:
            yield session
        except BaseException:
            await session.close()
            raise
        measure.session = session

    async def _rewind_once(self, session: Session, measure: Measure, now: Survey | None) -> Changes:
        pristine = measure.pristine
        if now is None:
            now = await take_survey(session, self._major)
        changes = await find_changes(session, pristine, measure.survey, now, measure.unsettled)
        if not changes.nothing or measure.large.opened:
            undo = Undo(
                session,
                measure.small,
                measure.large,
                lambda: self._reference(measure),
                pristine.estimates,
                self._major,
            )
            done = await undo.run(changes)
            now = await self._look_again(session, measure, changes, now, done)
        _settle(measure, now)
        measure.large.clean_at = (
            await wal_position(session) if measure.large.opened or _has_pages(pristine) else 0
        )
        return changes

    async def _look_again(
        self, session: Session, measure: Measure, changes: Changes, now: Survey, done: Done
    ) -> Survey:
        """Return the survey with our own work in it; sequences must say what they said."""
        if not (done.touched or done.catalogs or changes.sequences):
            return now
        if done.catalogs:
            found = await take_survey(session, self._major, ends=True)
        else:
            oids = {oid for table in done.touched for oid in (table.oid, table.toast) if oid}
            oids |= set(changes.sequences)
            again = await take_survey(session, self._major, oids, ends=True)
            lines = frozenset(again.lines | lines_without(now.lines, oids))
            found = again._replace(lines=lines)
        for line in measure.survey.lines - found.lines:
            if read_line(line).oid in measure.pristine.values:
                raise CannotRewindError("sequences do not say what they said")
        return found

    @asynccontextmanager
    async def _reference(self, measure: Measure) -> AsyncIterator[Reference]:
        """Lend the reference of a clone's generation, if that is still what it was."""
        if measure.build != self._builds[measure.generation]:
            raise CannotRewindError("its generation was built anew")
        async with self._references.of(measure.generation) as reference:
            yield reference

    async def _prove(self, session: Session, measure: Measure, found: Facts) -> None:
        async def digest(table: Table) -> str:
            async with self._reference(measure) as reference:
                return await reference.digest(table)

        await prove(session, measure.pristine, (found, measure.facts), digest)


def _has_pages(pristine: Pristine) -> bool:
    return any(table.paged for table in pristine.tables.values())


def _settle(measure: Measure, now: Survey) -> None:
    """Make what is seen now the measure of the next rewind."""
    was = {line.oid: line for line in map(read_line, measure.survey.lines - now.lines)}
    found = {line.oid: line for line in map(read_line, now.lines - measure.survey.lines)}
    if was.keys() != found.keys():
        raise CannotRewindError("there are other relations than before")
    measure.bytes += sum(found[oid].size - was[oid].size for oid in found)
    measure.unsettled -= set(found)
    measure.unsettled |= set(measure.small.open) | {
        oid for oid, line in found.items() if not line.settled and oid not in measure.large.opened
    }
    measure.survey = now
