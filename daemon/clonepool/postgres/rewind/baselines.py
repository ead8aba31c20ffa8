"""What is kept of each generation: its baseline, its reference clone, what rewinds cost.

All of it is in memory. Only the *pin*, a digest of the baseline, is also written into the
generation's comment, so that later daemons notice if the generation is not what it was.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import anyio

from clonepool.postgres.databases import annotate, read_comment
from clonepool.postgres.rewind.baseline import read_baseline
from clonepool.postgres.rewind.cost import Costs
from clonepool.postgres.rewind.errors import CannotRewindError, PinError
from clonepool.postgres.rewind.reference import References

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.baseline import Baseline
    from clonepool.postgres.rewind.reference import Reference
    from clonepool.postgres.session import Session

PINNED = "pinned"
"""Key of the pin in a generation's comment."""


class Build(NamedTuple):
    """One build of a generation: its database's name, and how often it was built before."""

    generation: str
    number: int


class Baselines:
    """What is kept of the generations of one server.

    Args:
        gateway: the way to the server.
        major: the server's version.
        make_reference: copies the generation of that name into a database that is never leased, and
            returns its name.
        settings: of the sessions that read.
    """

    def __init__(
        self,
        gateway: Gateway,
        major: int,
        make_reference: Callable[[str], Awaitable[str]],
        settings: Mapping[str, str],
    ) -> None:
        self._gateway = gateway
        self._major = major
        self._settings = settings
        self._references = References(gateway, make_reference, settings)
        self._known: dict[str, Baseline] = {}
        self._costs: defaultdict[str, Costs] = defaultdict(Costs)
        self._rebuilds: Counter[str] = Counter()
        self._locks: dict[str, anyio.Lock] = {}

    def current(self, generation: str) -> Build:
        """Return the present build of a generation."""
        return Build(generation, self._rebuilds[generation])

    def known(self, generation: str) -> Baseline:
        """Return the baseline of a generation, which `ensure` or `of_clone` has read."""
        return self._known[generation]

    def costs(self, generation: str) -> Costs:
        """Return how long rewinding and recreating its clones take."""
        return self._costs[generation]

    def rebuilt(self, generation: str) -> None:
        """Forget what a generation of that name held: it was rebuilt, with other OIDs.

        Clones of the former build keep their own baseline.
        """
        self._known.pop(generation, None)
        self._costs.pop(generation, None)
        self._references.forget(generation)
        self._rebuilds[generation] += 1

    async def retired(self, generation: str) -> None:
        """Forget a generation of which no more clones are made, and drop its reference clone.

        Raises:
            ServerUnavailableError, StatementError: the drop is tried again with the next one.
        """
        self._known.pop(generation, None)
        self._costs.pop(generation, None)
        await self._references.drop(generation)

    async def close(self) -> None:
        """Drop the reference clones."""
        await self._references.close()

    async def of_clone(self, clone: str, generation: str) -> Baseline:
        """Return the baseline; if it is not known, read it from a clone that was never leased.

        Raises:
            PinError: the clone is not what the generation was when it was pinned.
            ServerUnavailableError, StatementError: it is not known.
        """
        baseline = self._known.get(generation)
        if baseline is None:
            async with self._gateway.session(clone, self._settings) as session:
                baseline = await self._read(generation, session)
        return baseline

    async def ensure(self, generation: str) -> None:
        """Read the baseline from a new reference clone, unless it is known.

        This takes connections, so it must not be called while holding one.

        Raises:
            PinError: the copy is not what the generation was when it was pinned.
            CannotRewindError: no copy could be made.
            ServerUnavailableError, StatementError: the baseline is not known.
        """
        async with self._locks.setdefault(f"copy of {generation}", anyio.Lock()):
            if generation in self._known:
                return
            await self._references.ensure(generation)
            async with self._references.of(generation) as reference:
                baseline = await self._read(generation, reference.session)
            if not baseline.needs_reference:
                await self._references.drop(generation)

    async def ensure_reference(self, build: Build) -> None:
        """Make a reference clone of a build that is the present one, unless there is one.

        This takes connections, so it must not be called while holding one.
        """
        if build == self.current(build.generation):
            await self._references.ensure(build.generation)

    @asynccontextmanager
    async def reference(self, build: Build) -> AsyncIterator[Reference]:
        """Lend the reference clone of a build.

        Raises:
            CannotRewindError: there is none.
        """
        if build != self.current(build.generation):
            raise CannotRewindError("its generation was rebuilt")
        async with self._references.of(build.generation) as reference:
            yield reference

    async def _read(self, generation: str, session: Session) -> Baseline:
        """Return the baseline, read from a copy of the generation that was never leased."""
        async with self._locks.setdefault(generation, anyio.Lock()):
            baseline = self._known.get(generation)
            if baseline is None:
                build = self.current(generation)
                baseline = await read_baseline(session, self._major)
                if build == self.current(generation):
                    await self._check_pin(generation, baseline.pin)
                    self._known[generation] = baseline
        return baseline

    async def _check_pin(self, generation: str, pin: str) -> None:
        """Compare the pin with the one in the generation's comment, or write it there."""
        facts = await read_comment(self._gateway, generation)
        pinned = facts.get(PINNED)
        if pinned is None and facts:
            await annotate(self._gateway, generation, {**facts, PINNED: pin})
        elif pinned != pin:
            raise PinError(f"a copy of {generation} is not what that was when it was built")
