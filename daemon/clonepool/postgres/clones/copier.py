"""Making clones by the strategy that is chosen, and by another where that one fails.

What is chosen, and why, is in `copying`; here it is done and timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from clonepool.errors import CapabilityError, StatementError
from clonepool.postgres import databases
from clonepool.postgres.clones.copy_choice import Chooser
from clonepool.postgres.clones.copy_strategy import candidates, orders
from clonepool.postgres.clones.lifecycle import TooSlowError, make_clone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.copy_choice import Turn
    from clonepool.postgres.clones.copy_strategy import Strategy
    from clonepool.postgres.clones.lifecycle import Contents
    from clonepool.postgres.gateway import Gateway

log = structlog.get_logger()

STRATEGY_CHOSEN, STRATEGY_STRUCK = "copy.strategy_chosen", "copy.strategy_struck"
MEASURING = "measuring"
_NO_FAULT_OF_THE_STRATEGY = {
    databases.DUPLICATE_DATABASE,
    databases.INVALID_CATALOG_NAME,
    databases.OBJECT_IN_USE,
}


class Wanted(msgspec.Struct, frozen=True):
    """One clone that is to be made.

    Attributes:
        name: of its database.
        generation: the sealed database's name.
        contents: what the generation holds.
        facts: what the clone's comment tells people.
        seconds: for all of it.
        owner: of the clone; empty for our own role.
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
        chooser: Chooser,
        now: Callable[[], float],
    ) -> None:
        self._gateway = gateway
        self._capabilities = capabilities
        self._template = template
        self._now = now
        self._generation = ""
        self._told = chooser.chosen
        self.chooser = chooser

    async def make(self, wanted: Wanted, *, urgent: bool = False) -> None:
        """Make a clone, whole or not at all.

        A strategy that the server refuses is replaced by another within the same try, and struck
        off when that one succeeds; so is a trial that takes too long.

        Args:
            wanted: what is to be made.
            urgent: somebody waits for it.

        Raises:
            ServerUnavailableError, StatementError, IncompleteCloneError: as `make_clone` does; the
                database may exist and is to be dropped.
        """
        self._notice(wanted.generation)
        chooser = self.chooser
        refused: dict[Strategy, StatementError] = {}
        deadline = self._now() + wanted.seconds
        while True:
            turn = chooser.begin(urgent=urgent, without=refused)
            try:
                await self._copy(turn, wanted, deadline)
                break
            except TooSlowError:
                if self._now() >= deadline:
                    raise
            except StatementError as error:
                refused[turn.strategy] = error
                if error.sqlstate in _NO_FAULT_OF_THE_STRATEGY or not chooser.has_other(refused):
                    raise
            await databases.drop(self._gateway, wanted.name)
        for strategy, refusal in refused.items():
            self._strike(strategy, refusal)
        self._tell()

    async def _copy(self, turn: Turn, wanted: Wanted, deadline: float) -> None:
        """Do it one way, and tell the chooser how long it took."""
        words, settings = orders(turn.strategy, self._capabilities)
        began = self._now()
        left = max(0.001, deadline - began)
        try:
            await make_clone(
                self._gateway,
                wanted.name,
                wanted.generation,
                wanted.contents,
                options=words,
                facts=wanted.facts,
                seconds=left if turn.limit is None else min(left, turn.limit),
                owner=wanted.owner,
                settings=settings,
            )
        except TooSlowError:
            self.chooser.late(turn)
            raise
        except BaseException:
            self.chooser.gave_up(turn)
            raise
        self.chooser.finished(turn, self._now() - began)

    def server_changed(self) -> None:
        """Forget what was measured: the server may be another, or on another disk."""
        self.chooser.start_over()

    def _notice(self, generation: str) -> None:
        """Measure anew what is another template now."""
        if self._generation not in ("", generation):
            self.chooser.start_over()
        self._generation = generation

    def _strike(self, strategy: Strategy, error: StatementError) -> None:
        self.chooser.strike(strategy)
        log.warning(
            STRATEGY_STRUCK, template=self._template, strategy=strategy, error=error.sentence()
        )

    def _tell(self) -> None:
        """Say once what is chosen, when it is something else than before."""
        chosen = self.chooser.chosen
        if chosen is not None and chosen is not self._told:
            self._told = chosen
            seconds = {each: round(took, 4) for each, took in self.chooser.took().items()}
            log.info(STRATEGY_CHOSEN, template=self._template, strategy=chosen, seconds=seconds)


class Copiers:
    """The copiers of all templates: what one does slows the others, so they know of each other.

    Args:
        gateway: the way to the server.
        capabilities: of the server.
        wanted: "auto" or the name of a strategy, by template.
        throwaway: whether nothing is flushed to a disk.
        now: monotonic seconds.

    Raises:
        CapabilityError: the server cannot do what is wanted.
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
        self._under_way: set[Turn] = set()
        self._of: dict[str, Copier] = {}
        for template, how in wanted.items():
            self.enter(template, how)

    def enter(self, template: str, how: str) -> None:
        """Begin to copy a template, "auto" or by the strategy of that name.

        Raises:
            CapabilityError: the server cannot do what is wanted.
        """
        if template in self._of:
            return
        try:
            able = candidates(how, self._capabilities, throwaway=self._throwaway)
        except CapabilityError as error:
            raise CapabilityError(f"templates.{template}.{error}", remedy=error.remedy) from error
        chooser = Chooser(able, self._under_way)
        self._of[template] = Copier(self._gateway, self._capabilities, template, chooser, self._now)

    def remove(self, template: str) -> None:
        """Copy it no more."""
        del self._of[template]

    def of(self, template: str) -> Copier:
        """Return the one that makes that template's clones."""
        return self._of[template]

    def server_changed(self) -> None:
        """Forget what was measured."""
        for copier in self._of.values():
            copier.server_changed()

    def shown(self, template: str) -> str:
        """Return what people are told of a template: the strategy's name, or that it is sought."""
        return self._of[template].chooser.chosen or MEASURING

    def strategies(self) -> Iterator[tuple[str, Strategy, bool]]:
        """Return each template, each strategy it has to choose from, and whether it is chosen."""
        for template, copier in self._of.items():
            for strategy in copier.chooser.candidates:
                yield template, strategy, strategy is copier.chooser.chosen
