"""What every worker is given, and what it does with a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.errors import ClonepoolError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.config import Config
    from clonepool.core.decisions import Decision
    from clonepool.core.fleet import Fleet
    from clonepool.observe.metrics import Metrics
    from clonepool.postgres.builder import Generation
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.gateway import Gateway
    from clonepool.service.limiter import PriorityLimiter

log = structlog.get_logger()


class Context:
    """The rooms that a worker may reach.

    Attributes:
        generations: what each template's current generation is, by template.
        carry_out: gives the broker the decisions that follow from what happened.
        now: monotonic seconds.
    """

    def __init__(
        self,
        *,
        config: Config,
        gateway: Gateway,
        capabilities: Capabilities,
        fleet: Fleet,
        limiter: PriorityLimiter,
        metrics: Metrics,
        now: Callable[[], float],
        throwaway: bool,
    ) -> None:
        self.config = config
        self.gateway = gateway
        self.capabilities = capabilities
        self.fleet = fleet
        self.limiter = limiter
        self.metrics = metrics
        self.now = now
        self.copy_options = capabilities.copy_options(throwaway=throwaway)
        self.generations: dict[str, Generation] = {}
        self.carry_out: Callable[[list[Decision]], None] = lambda _: None

    def count_failure(self, error: Exception) -> ClonepoolError:
        """Count a failed pass and return it as an error that can be told."""
        if isinstance(error, StatementError):
            self.metrics.server_errors.labels(error.sqlstate[:2]).inc()
        elif isinstance(error, ServerUnavailableError):
            self.metrics.server_errors.labels("unavailable").inc()
        if isinstance(error, ClonepoolError):
            return error
        log.error("worker.failed", exc_info=error)
        return ClonepoolError(f"internal error: {error!r}")
