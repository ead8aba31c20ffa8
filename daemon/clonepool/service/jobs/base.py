"""What all jobs have in common: one pass for a decision, its boundary, and the event it ends with.

A job only does what was decided. What follows from the outcome is decided by the pools, which get
it as an event.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import anyio

from clonepool.core.backoff import Backoff
from clonepool.service.event_handler import EventHandler

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.events import Event
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.gateway import Gateway
    from clonepool.service.clone_comment import Comments
    from clonepool.service.failures import Attempt, Failures
    from clonepool.service.template_table import TemplateTable


class JobEvents(EventHandler, Protocol):
    """Takes the events of jobs, and resumes what a lease held up."""

    def looked_at(self, clone: str) -> None:
        """Resume the grants that are held since the lease on that clone ended, if they are."""


class TemplateLosses(Protocol):
    """Has generations built again that a job found to be gone or damaged."""

    def lost(self, template: str) -> None:
        """The generation is no longer on the server."""

    def damaged(self, template: str) -> None:
        """The generation is there and not what it was."""


class Target(Protocol):
    """A clone that a decision is about."""

    @property
    def template(self) -> str:
        """The template of the clone."""

    @property
    def clone(self) -> str:
        """The name of its database."""


class JobTools(NamedTuple):
    """What every job needs.

    Attributes:
        comments: what is written on a clone.
        events: is told how the work ended.
        failures: logs and counts what fails.
        gateway: the way to the server.
        metrics: count and time the work.
        templates: options and generations.
        now: monotonic seconds.
    """

    comments: Comments
    events: JobEvents
    failures: Failures
    gateway: Gateway
    metrics: Metrics
    templates: TemplateTable
    now: Callable[[], float]


DecisionT = TypeVar("DecisionT")


class _Skeleton(ABC, Generic[DecisionT]):
    """Carries out decisions of one kind, each in a task of its own.

    How many work at once is up to the limiters, not to the job.
    """

    failed_event: ClassVar[str]
    """The log event of a pass that failed."""

    def __init__(self, tools: JobTools) -> None:
        self._comments = tools.comments
        self._events = tools.events
        self._failures = tools.failures
        self._gateway = tools.gateway
        self._metrics = tools.metrics
        self._now = tools.now
        self._templates = tools.templates

    async def run(self, decision: DecisionT) -> None:
        """Carry out a decision and tell the pools how that ended.

        Only cancellation ends this before the pools are told.
        """
        self._events.handle(await self._carry_out(decision))

    @abstractmethod
    async def run_once(self, decision: DecisionT) -> Event:
        """Make one pass; return what happened. Any exception counts as a failed pass."""

    @abstractmethod
    def target(self, decision: DecisionT) -> Target:
        """Return the clone that the decision is about."""

    @abstractmethod
    async def _carry_out(self, decision: DecisionT) -> Event:
        """Make as many passes as it takes; return how that ended."""


class Job(_Skeleton[DecisionT]):
    """A job that makes one pass for a decision."""

    @abstractmethod
    def failed(self, decision: DecisionT, attempt: Attempt) -> Event:
        """Return what a failed pass means for the pools."""

    async def _carry_out(self, decision: DecisionT) -> Event:
        target = self.target(decision)
        with self._failures.attempt(
            self.failed_event, target.template, clone=target.clone
        ) as attempt:
            return await self.run_once(decision)
        return self.failed(decision, attempt)


class PersistentJob(_Skeleton[DecisionT]):
    """A job that makes passes for a decision until one succeeds."""

    first_pause: ClassVar[float] = 0.2
    longest_pause: ClassVar[float] = 2.0
    """Seconds between two passes."""

    async def _carry_out(self, decision: DecisionT) -> Event:
        target, backoff = self.target(decision), Backoff(self.first_pause, self.longest_pause)
        while True:
            with self._failures.attempt(
                self.failed_event, target.template, subject=target.clone, clone=target.clone
            ):
                return await self.run_once(decision)
            await anyio.sleep(backoff.next_pause())
