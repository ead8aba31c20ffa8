"""What fails at the moment: the boundary of every pass of background work.

A failure is logged once when it begins, once when its cause changes and once when the work succeeds
again, not for each try.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import resource_errors
from clonepool.errors import ClonepoolError, ResourceError, ServerUnavailableError, StatementError

if TYPE_CHECKING:
    from types import TracebackType

    from clonepool.observe.metrics import Metrics
    from clonepool.service.resources import Resources

log = structlog.get_logger()


class _Failure:
    """One kind of work that fails for one template: the cause last logged, and its subjects."""

    def __init__(self) -> None:
        self.cause = ""
        self.subjects: set[str] = set()


class Failures:
    """The failures of the moment, by log event and template.

    Args:
        metrics: count the errors of the server.
        resources: remembers what the machine is short of, and logs that in place of the failure.
    """

    def __init__(self, metrics: Metrics, resources: Resources) -> None:
        self._metrics = metrics
        self._resources = resources
        self._known: dict[tuple[str, str], _Failure] = {}

    def attempt(
        self,
        event: str,
        template: str = "",
        *,
        subject: str = "",
        expected: tuple[type[Exception], ...] = (),
        **facts: object,
    ) -> Attempt:
        """Return the boundary of one pass: `with failures.attempt(...) as attempt:`.

        An exception inside ends the block and goes no further; the code after the block asks
        whether the attempt `failed`. Cancellation passes.

        Args:
            event: as for `begin`.
            template: as for `begin`.
            subject: as for `begin`.
            expected: exceptions that are a result and no failure: they pass.
            facts: as for `begin`.
        """
        return Attempt(self, event, template, subject, expected, facts)

    def begin(
        self,
        event: str,
        template: str,
        error: Exception,
        *,
        subject: str = "",
        **facts: object,
    ) -> ClonepoolError:
        """Count a failed pass, log it if that is news, and return the error for clients.

        When the machine is short of something, that is logged in place of the failure.

        Args:
            event: the log event, such as clone.create_failed.
            template: whose work it was; empty for work of no template.
            error: the exception. One that is not a ClonepoolError is a bug, and logged in full.
            subject: what the work was done on, where it will be tried on the same again: the
                failure then lasts until the work has succeeded on each.
            facts: for the log.
        """
        self._count(error)
        if self._resources.note(error):
            log.debug(event, template=template, error=str(error), **facts)
            return resource_errors.told(error, event) or ClonepoolError(str(error))
        if isinstance(error, ClonepoolError):
            told = error
        else:
            log.error("worker.failed", exc_info=error)
            told = ClonepoolError(f"internal error: {error!r}")
        failure = self._known.setdefault((event, template), _Failure())
        failure.subjects.add(subject)
        if failure.cause != _cause(told):
            failure.cause = _cause(told)
            log.warning(event, template=template, error=told.sentence(), **facts)
        return told

    def end(self, event: str, template: str = "", subject: str = "") -> None:
        """Log that the work succeeds again, if it failed."""
        failure = self._known.get((event, template))
        if failure is None:
            return
        failure.subjects.discard(subject)
        if not failure.subjects:
            del self._known[event, template]
            log.info("trouble.ended", of=event, template=template)

    def _count(self, error: Exception) -> None:
        if isinstance(error, StatementError):
            self._metrics.server_errors.labels(error.sqlstate[:2]).inc()
        elif isinstance(error, ServerUnavailableError):
            self._metrics.server_errors.labels("unavailable").inc()


class Attempt:
    """One pass of background work, and the only place where all of its exceptions are caught.

    Whatever goes wrong in a pass, PostgreSQL's fault or a bug in the daemon, must cost only that
    pass: not the loop that makes the passes, and not the daemon.

    Attributes:
        cause: the exception that ended the pass; None when it succeeded.
    """

    def __init__(
        self,
        failures: Failures,
        event: str,
        template: str,
        subject: str,
        expected: tuple[type[Exception], ...],
        facts: dict[str, object],
    ) -> None:
        self._failures = failures
        self._event = event
        self._template = template
        self._subject = subject
        self._expected = expected
        self._facts = facts
        self._error = ClonepoolError("it did not fail")
        self.cause: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether an exception ended the pass."""
        return self.cause is not None

    @property
    def error(self) -> ClonepoolError:
        """Why the pass failed, as clients may read it."""
        return self._error

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            self._failures.end(self._event, self._template, self._subject)
            return False
        if not isinstance(error, Exception) or isinstance(error, self._expected):
            return False
        self.cause = error
        self._error = self._failures.begin(
            self._event, self._template, error, subject=self._subject, **self._facts
        )
        return True


def _cause(error: ClonepoolError) -> str:
    """Return what tells one cause from another: the messages name a different clone each time."""
    if isinstance(error, StatementError):
        return error.sqlstate
    if isinstance(error, ResourceError):
        return error.limit
    return type(error).__name__
