"""Makes clones by the chosen copy strategy, and by another one where that fails.

The choice itself is made in `core.copy_choice`; here clones are copied and timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from clonepool.core.copy_choice import CopyChooser
from clonepool.errors import CapabilityError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.clones.copy_strategy import candidates, copy_options
from clonepool.postgres.clones.lifecycle import TooSlowError, make_clone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from clonepool.core.copy_choice import CopyAttempt, Strategy
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.lifecycle import Contents
    from clonepool.postgres.gateway import Gateway

log = structlog.get_logger()

STRATEGY_CHOSEN, STRATEGY_STRUCK = "copy.strategy_chosen", "copy.strategy_struck"
MEASURING = "measuring"
_SHORTEST_SECONDS = 0.001
"""Time that an attempt gets when its clone's deadline has passed."""
_UNRELATED_TO_STRATEGY = {
    databases.DUPLICATE_DATABASE,
    databases.INVALID_CATALOG_NAME,
    databases.OBJECT_IN_USE,
}
"""SQLSTATEs with which CREATE DATABASE fails whatever the strategy."""


class CloneSpec(msgspec.Struct, frozen=True):
    """A clone to be made.

    Attributes:
        name: of its database.
        generation: the sealed database's name.
        contents: what the generation holds.
        facts: what the clone's comment says.
        seconds: time limit of the whole.
        owner: of the clone; empty for the daemon's own role.
    """

    name: str
    generation: str
    contents: Contents
    facts: dict[str, Any]
    seconds: float
    owner: str = ""


class Copier:
    """Makes the clones of one template."""

    def __init__(
        self,
        gateway: Gateway,
        capabilities: Capabilities,
        template: str,
        chooser: CopyChooser,
        now: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._capabilities = capabilities
        self._template = template
        self._now = now
        self._generation = ""
        self._logged = chooser.chosen
        self.chooser = chooser

    async def make(self, spec: CloneSpec, *, urgent: bool = False) -> None:
        """Make a clone.

        When the server refuses a strategy, or a measured one takes too long, another is used within
        the same call. A strategy that was refused is not used again once another has succeeded.

        Args:
            spec: the clone.
            urgent: whether a client waits for it.

        Raises:
            ServerUnavailableError, StatementError, IncompleteCloneError: as `make_clone` does. The
                database may exist; the caller drops it.
        """
        if self._generation not in ("", spec.generation):
            self.chooser.start_over()
        self._generation = spec.generation
        for strategy, refusal in (await self._try_strategies(spec, urgent=urgent)).items():
            self.chooser.refuse(strategy)
            error = refusal.sentence()
            log.warning(STRATEGY_STRUCK, template=self._template, strategy=strategy, error=error)
        self._log_choice()

    async def _try_strategies(
        self, spec: CloneSpec, *, urgent: bool
    ) -> dict[Strategy, StatementError]:
        """Make a clone by one strategy after the other; return those that the server refused."""
        refused: dict[Strategy, StatementError] = {}
        deadline = self._now() + spec.seconds
        while True:
            attempt = self.chooser.begin(urgent=urgent, without=refused)
            try:
                await self._copy(attempt, spec, deadline)
            except TooSlowError:
                if self._now() >= deadline:
                    raise
            except StatementError as error:
                refused[attempt.strategy] = error
                unrelated = error.sqlstate in _UNRELATED_TO_STRATEGY
                if unrelated or not self.chooser.has_other(refused):
                    raise
            else:
                return refused
            await databases.drop(self._gateway, spec.name)

    async def _copy(self, attempt: CopyAttempt, spec: CloneSpec, deadline: float) -> None:
        """Make the clone by one strategy, and tell the chooser how long it took."""
        options, settings = copy_options(attempt.strategy, self._capabilities)
        began = self._now()
        left = max(_SHORTEST_SECONDS, deadline - began)
        try:
            await make_clone(
                self._gateway,
                spec.name,
                spec.generation,
                spec.contents,
                options=options,
                facts=spec.facts,
                seconds=left if attempt.limit is None else min(left, attempt.limit),
                owner=spec.owner,
                settings=settings,
            )
        except TooSlowError:
            self.chooser.too_slow(attempt)
            raise
        except BaseException:
            self.chooser.failed(attempt)
            raise
        self.chooser.finished(attempt, self._now() - began)

    def _log_choice(self) -> None:
        """Log the chosen strategy when it has changed."""
        chosen = self.chooser.chosen
        if chosen is not None and chosen is not self._logged:
            self._logged = chosen
            seconds = {each: round(took, 4) for each, took in self.chooser.seconds().items()}
            log.info(STRATEGY_CHOSEN, template=self._template, strategy=chosen, seconds=seconds)


class Copiers:
    """The copiers of all templates of one server.

    They share the set of copies that are under way, because each copy slows the others.

    Args:
        gateway: the way to the server.
        capabilities: of the server.
        wanted: "auto" or the name of a strategy, by template.
        throwaway: whether the server flushes nothing to disk.
        now: monotonic seconds.

    Raises:
        CapabilityError: the server cannot copy as wanted.
    """

    def __init__(
        self,
        gateway: Gateway,
        capabilities: Capabilities,
        wanted: Mapping[str, str],
        now: Callable[[], float],
        *,
        throwaway: bool,
    ) -> None:
        self._gateway = gateway
        self._capabilities = capabilities
        self._now = now
        self._throwaway = throwaway
        self._under_way: set[CopyAttempt] = set()
        self._by_template: dict[str, Copier] = {}
        for template, strategy in wanted.items():
            self.enter(template, strategy)

    def enter(self, template: str, wanted: str) -> None:
        """Add a template, unless it is there already.

        Args:
            template: its name.
            wanted: "auto", or the name of a strategy.

        Raises:
            CapabilityError: the server cannot copy as wanted.
        """
        if template in self._by_template:
            return
        try:
            possible = candidates(wanted, self._capabilities, throwaway=self._throwaway)
        except CapabilityError as error:
            raise CapabilityError(f"templates.{template}.{error}", remedy=error.remedy) from error
        chooser = CopyChooser(possible, self._under_way)
        self._by_template[template] = Copier(
            self._gateway, self._capabilities, template, chooser, self._now
        )

    def remove(self, template: str) -> None:
        """Remove a template."""
        del self._by_template[template]

    def of(self, template: str) -> Copier:
        """Return the copier of a template."""
        return self._by_template[template]

    def server_changed(self) -> None:
        """Measure everything anew: the server may be another one, or on another disk."""
        for copier in self._by_template.values():
            copier.chooser.start_over()

    def shown(self, template: str) -> str:
        """Return what the status says of a template: its strategy, or that it is being measured."""
        return self._by_template[template].chooser.chosen or MEASURING

    def strategies(self) -> Iterator[tuple[str, Strategy, bool]]:
        """Yield each template, each strategy it may use, and whether that one is chosen."""
        for template, copier in self._by_template.items():
            for strategy in copier.chooser.candidates:
                yield template, strategy, strategy is copier.chooser.chosen
