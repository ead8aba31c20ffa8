"""Keeps the measure of each generation and of each clean clone, and rewinds by them.

All of it is in memory: a clone of an earlier daemon has no measure, and is recreated when it comes
back, unless it was parked, and so measured again when it was adopted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from clonepool.postgres import leftovers
from clonepool.postgres.databases import annotate
from clonepool.postgres.rewind.pristine import Pristine, read_pristine
from clonepool.postgres.rewind.proof import prove
from clonepool.postgres.rewind.survey import Survey, take_survey
from clonepool.postgres.rewind.undo import (
    CannotRewindError,
    Changes,
    LeftoversError,
    find_changes,
    undo,
)

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway, Session

log = structlog.get_logger()

BLOAT_FACTOR = 2
BLOAT_BYTES = 8 * 1024 * 1024
"""A clone is recreated when it takes so many times what it took at first, and so much more."""
_SETTINGS = """\
SET search_path = pg_catalog; SET default_transaction_read_only = off; SET lock_timeout = '5s';
SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres';
SET bytea_output = hex; SET extra_float_digits = 1; SET xmlbinary = base64;
SET synchronous_commit = on; SET row_security = off; SET idle_in_transaction_session_timeout = 0
"""
"""Whatever the template's own settings are, values are read and written in one way."""


class Measure(msgspec.Struct):
    """A clone as it was when it was last clean.

    Attributes:
        pristine: what its generation holds.
        first_bytes: what it took when it was made.
        epoch: of the server's life, counted by `Rewinder.server_lost`.
    """

    pristine: Pristine
    survey: Survey
    first_bytes: int
    epoch: int


class Rewound(msgspec.Struct, frozen=True):
    """What a rewind did, for metrics and logs."""

    tables: int
    sequences: int
    seconds: float


class Rewinder:
    """Rewinds the clones of one server."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pristine: dict[str, Pristine] = {}
        self._measures: dict[str, Measure] = {}
        self._epoch = 0
        self._rewinds = 0

    def server_lost(self) -> None:
        """Trust no counter from before: the server may have crashed and lost them."""
        self._epoch += 1

    def forget(self, clone: str) -> None:
        """Forget a clone that is gone."""
        self._measures.pop(clone, None)

    def built(self, generation: str) -> None:
        """Forget what a generation of that name held: it was built anew, with other OIDs.

        Clones of the one before go on by their own measure.
        """
        self._pristine.pop(generation, None)

    async def measure(self, session: Session, clone: str, generation: str) -> None:
        """Take the measure of a clone that was just made, or found clean, and is nobody's.

        Args:
            session: to the clone.
            clone: its name.
            generation: the database it is a clone of.
        """
        epoch = self._epoch
        await session.execute(_SETTINGS)
        pristine = self._pristine.get(generation)
        if pristine is None:
            pristine = self._pristine[generation] = await read_pristine(session)
        survey = await take_survey(session, pristine.sequences_sql)
        self._measures[clone] = Measure(pristine, survey, survey.bytes, epoch)

    async def rewind(self, clone: str, facts: dict[str, Any], *, verify_every: int = 0) -> Rewound:
        """Undo what a lease changed. Its sessions must be gone.

        Args:
            clone: its name.
            facts: what its comment is to say.
            verify_every: one in so many rewound clones is compared with its generation in full; 0
                for none.

        Raises:
            ProofError: it was rewound and is not what it should be: nobody may have it.
            CannotRewindError: it is to be recreated; says why.
            StatementError, ServerUnavailableError: it is in an unknown state: recreate it.
        """
        measure = self._measures.pop(clone, None)  # whatever goes wrong, it is not clean any more
        if measure is None or measure.epoch != self._epoch:
            raise CannotRewindError("its measure was never taken, or the server was away since")
        began = time.monotonic()
        pristine = measure.pristine
        try:
            changes, now = await self._rewind_once(clone, pristine, measure.survey)
        except LeftoversError:
            # Outside the session: clearing needs connections of its own.
            found = await leftovers.clear(self._gateway, clone)
            log.info("clone.leftovers_cleared", clone=clone, found=found)
            changes, now = await self._rewind_once(clone, pristine, measure.survey)
        if now.bytes > BLOAT_FACTOR * measure.first_bytes + BLOAT_BYTES:
            raise CannotRewindError(f"it has grown to {now.bytes} bytes")
        self._rewinds += 1
        if verify_every and self._rewinds % verify_every == 0:
            await self._prove(clone, pristine, measure.survey.properties)
        if measure.survey.comment != now.comment:
            await annotate(self._gateway, clone, facts)
        if measure.epoch != self._epoch:
            raise CannotRewindError("the server was away meanwhile")
        # The comment is as it was again, whoever wrote into it.
        measure.survey = msgspec.structs.replace(now, comment=measure.survey.comment)
        self._measures[clone] = measure
        return Rewound(len(changes.tables), len(changes.sequences), time.monotonic() - began)

    async def _prove(self, clone: str, pristine: Pristine, properties: str) -> None:
        async with self._gateway.session(clone) as session:
            await session.execute(_SETTINGS)
            await prove(session, pristine, properties)

    async def _rewind_once(
        self, clone: str, pristine: Pristine, before: Survey
    ) -> tuple[Changes, Survey]:
        async with self._gateway.session(clone) as session:
            await session.execute(_SETTINGS)
            now = await take_survey(session, pristine.sequences_sql)
            changes = await find_changes(session, pristine, before, now)
            if changes.nothing:
                return changes, now
            await undo(session, changes)
            return changes, await _look_again(session, pristine, before)


async def _look_again(session: Session, pristine: Pristine, before: Survey) -> Survey:
    """Take the new measure, with our own work counted in it, and see that the rest is as before."""
    await session.rows("SELECT pg_stat_force_next_flush()")
    now = await take_survey(session, pristine.sequences_sql)
    if now.sequences != before.sequences:
        raise CannotRewindError("sequences do not say what they said")
    if now.relations.keys() != before.relations.keys():
        raise CannotRewindError("there are other relations than before")
    return now
