"""One log line when something begins to fail, one when it works again, none for each retry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import resource_errors
from clonepool.errors import ClonepoolError, ResourceError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from clonepool.observe.metrics import Metrics
    from clonepool.service.monitors.resources import ResourceMonitor

log = structlog.get_logger()


class _Trouble:
    """One kind of work that fails for one template: the cause last told, and what it befell."""

    def __init__(self) -> None:
        self.cause = ""
        self.subjects: set[str] = set()


class Failures:
    """What fails at the moment, by what was tried and for which template."""

    def __init__(self, metrics: Metrics, shortages: ResourceMonitor) -> None:
        self._metrics = metrics
        self._shortages = shortages
        self._known: dict[tuple[str, str], _Trouble] = {}

    def begin(
        self,
        event: str,
        template: str,
        error: Exception,
        *,
        subject: str = "",
        **facts: object,
    ) -> ClonepoolError:
        """Count a failed pass and return it as an error that can be told.

        One that failed because the machine is short of something is not logged for itself.

        Args:
            event: the log event, such as clone.create_failed.
            template: whose work it was; empty for work that is no template's.
            error: what was raised; one that is not ours is a mistake of ours, and logged in full.
            subject: what the work was done on, where it will be tried on the same again: then the
                trouble lasts until it has ended for each.
            facts: for the log.
        """
        self._count(error)
        if self._shortages.note(error):
            log.debug(event, template=template, error=str(error), **facts)
            return resource_errors.told(error, event) or ClonepoolError(str(error))
        if isinstance(error, ClonepoolError):
            told = error
        else:
            log.error("worker.failed", exc_info=error)
            told = ClonepoolError(f"internal error: {error!r}")
        trouble = self._known.setdefault((event, template), _Trouble())
        trouble.subjects.add(subject)
        if trouble.cause != _cause(told):
            trouble.cause = _cause(told)
            log.warning(event, template=template, error=told.sentence(), **facts)
        return told

    def end(self, event: str, template: str, subject: str = "") -> None:
        """Say so if what failed works again."""
        trouble = self._known.get((event, template))
        if trouble is None:
            return
        trouble.subjects.discard(subject)
        if not trouble.subjects:
            del self._known[event, template]
            log.info("trouble.ended", of=event, template=template)

    def _count(self, error: Exception) -> None:
        if isinstance(error, StatementError):
            self._metrics.server_errors.labels(error.sqlstate[:2]).inc()
        elif isinstance(error, ServerUnavailableError):
            self._metrics.server_errors.labels("unavailable").inc()


def _cause(error: ClonepoolError) -> str:
    """Return what tells one cause from another: the words name a different clone each time."""
    if isinstance(error, StatementError):
        return error.sqlstate
    if isinstance(error, ResourceError):
        return error.limit
    return type(error).__name__
