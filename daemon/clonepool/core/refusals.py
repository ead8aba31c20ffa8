"""The errors with which pools refuse requests: each says why, with the names and numbers needed.

This module only writes the texts. The pools decide whether a request is refused, and when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core.limits import Limit
from clonepool.errors import (
    AcquireTimeoutError,
    ClientLimitError,
    ClonepoolError,
    DrainingError,
    LeaseBusyError,
    NotYourDefinitionError,
    NotYourLeaseError,
    PoolFullError,
    QueueFullError,
    RequestCancelledError,
    ServerUnavailableError,
    ShuttingDownError,
    TemplateFailedError,
    UnknownTemplateError,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from clonepool.core.decisions import Lease

_NAMED_HOLDERS = 3


def template_failed(template: str, failure: ClonepoolError | None) -> TemplateFailedError:
    """The template could not be built; the remedy is the failure's own if it has one."""
    if failure is not None and failure.remedy:
        return TemplateFailedError(
            f"template {template} could not be built: {failure}", remedy=failure.remedy
        )
    return TemplateFailedError(
        f"template {template} could not be built: {failure or 'unknown'}",
        remedy="fix its sources; it is rebuilt when one of its files changes, or run"
        f" `clonepool build {template}`",
    )


def queue_full(template: str, waiting: int) -> QueueFullError:
    """The queue is full."""
    return QueueFullError(
        f"{waiting} acquires of {template} are already waiting",
        remedy=f"start fewer tests at a time, or raise templates.{template}.max_waiting",
    )


def draining(template: str) -> DrainingError:
    """The template, or the daemon, is being drained."""
    return DrainingError(
        f"{template} is being drained: it grants no new leases",
        remedy=f"`clonepool drain --off {template}` lets it grant leases again",
    )


def not_your_lease() -> NotYourLeaseError:
    """The token names no lease."""
    return NotYourLeaseError(
        "no lease has that token",
        remedy="a lease ends when it is released, when it expires, or with its connection",
    )


def being_reset() -> LeaseBusyError:
    """The lease has no clone until its reset has ended."""
    return LeaseBusyError(
        "the lease is being reset", remedy="wait for the reply to the reset; a release ends both"
    )


def ended_while_reset() -> NotYourLeaseError:
    """The lease ended before its clone was clean."""
    return NotYourLeaseError(
        "the lease ended while it was being reset",
        remedy="it was released, it expired, its connection ended, or the daemon stopped",
    )


def stopped_while_reset() -> AcquireTimeoutError:
    """The daemon is stopping and makes no more clones, so the lease gets none."""
    return AcquireTimeoutError(
        "the daemon is stopping and has no clean clone for the lease, which has ended",
        remedy="acquire a new lease when the daemon has been started again",
    )


def not_your_definition() -> NotYourDefinitionError:
    """The token names no definition."""
    return NotYourDefinitionError(
        "no definition has that token",
        remedy="it was finalized or abandoned, its time ran out, or its connection ended;"
        " define the template again",
    )


def retired(template: str) -> UnknownTemplateError:
    """The template was made by a client and has been removed since."""
    return UnknownTemplateError(
        f"template {template} was removed: it was unused for too long, or its place was needed",
        remedy="make it again",
    )


def being_filled(template: str, seconds: float) -> AcquireTimeoutError:
    """Another client is still filling the template."""
    return AcquireTimeoutError(
        f"waited {seconds:.3f} s for another client to fill {template}",
        remedy="raise the timeout, or check whether that client is still running",
    )


def too_many_templates(count: int) -> ClientLimitError:
    """Clients have made as many templates as they may."""
    return ClientLimitError(
        f"clients have made {count} templates, and all are in use",
        remedy="release leases, or raise client_templates.max_templates",
    )


def shutting_down() -> ShuttingDownError:
    """The daemon is stopping."""
    return ShuttingDownError(
        "the daemon is stopping", remedy="try again when it has been started again"
    )


def cancelled() -> RequestCancelledError:
    """The connection cancelled its own request."""
    return RequestCancelledError("the request was cancelled by its connection")


def still_building(waited: str, obstacle: ClonepoolError | None) -> AcquireTimeoutError:
    """There is nothing to clone yet; `obstacle` is what prevents the build, if anything does."""
    if obstacle is None:
        return AcquireTimeoutError(
            f"{waited}: the template is still being built", remedy="raise the timeout"
        )
    return AcquireTimeoutError(
        f"{waited}: the template cannot be built at the moment: {obstacle}",
        remedy=obstacle.remedy or "see `clonepool status`",
    )


def server_away(waited: str, problem: str) -> ServerUnavailableError:
    """PostgreSQL cannot be reached; `problem` says why, if that is known."""
    why = f": {problem}" if problem else ""
    return ServerUnavailableError(
        f"{waited}: PostgreSQL cannot be reached{why}", remedy="see `clonepool status`"
    )


def creating_fails(waited: str, cause: ClonepoolError) -> AcquireTimeoutError:
    """No clones can be made at the moment."""
    remedy = cause.remedy or "see `clonepool status`"
    return AcquireTimeoutError(f"{waited}: {cause}", remedy=remedy)


def pool_full(
    waited: str, template: str, leases: Collection[Lease], limit: Limit, most: int, now: float
) -> PoolFullError:
    """Every clone that the limit allows is leased: how many, by whom, for how long.

    Args:
        waited: the beginning of the sentence.
        template: the template that was asked for.
        leases: those of this template, or of all templates where the common limit is reached.
        limit: the limit that is reached.
        most: number of clones that it allows.
        now: monotonic seconds.
    """
    key = f"templates.{template}.max_clones" if limit is Limit.TEMPLATE else "pool.max_clones"
    of_all = "" if limit is Limit.TEMPLATE else ", all templates together"
    return PoolFullError(
        f"{waited}: {len(leases)} of {most} are leased, {_holders(leases, now)}{of_all}",
        remedy=f"raise {key}, or release leases sooner",
    )


def too_slow(waited: str) -> AcquireTimeoutError:
    """Clones are being made, and none was ready in time."""
    return AcquireTimeoutError(
        f"{waited}: none became ready in time", remedy="raise min_ready or the timeout"
    )


def _holders(leases: Collection[Lease], now: float) -> str:
    """Name the labels that hold the most leases, each with the age of its oldest."""
    by_label: dict[str, list[float]] = {}
    for lease in leases:
        by_label.setdefault(lease.label or "a client", []).append(now - lease.granted_at)
    most = sorted(by_label.items(), key=lambda item: (-len(item[1]), -max(item[1])))
    named = [
        f"{len(ages)} by {label} (the oldest for {max(ages):.1f} s)"
        for label, ages in most[:_NAMED_HOLDERS]
    ]
    others = len(most) - len(named)
    return ", ".join([*named, f"{others} other holders"] if others else named)
