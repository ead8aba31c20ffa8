"""The boundary of a task: a bug in it must not end the whole task group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import resource_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()


async def guarded(work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Do the work; log an exception that it did not expect, so that it costs only this work.

    What is expected to fail is caught where it is known what follows, by `Failures.attempt`.
    """
    try:
        await work(*arguments)
    except Exception as error:
        short = resource_errors.shortage(error)
        if short is not None:
            log.warning("work.not_done", work=repr(arguments[:1]), short_of=short)
        else:
            log.exception("work.failed", work=repr(arguments[:1]))
