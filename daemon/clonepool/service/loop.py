"""Logs exceptions in callbacks of the event loop: one line each, none for a shortage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from clonepool.service.resources import Resources

log = structlog.get_logger()


def handler(
    resources: Resources,
) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return the exception handler for the loop; its own would print a traceback on stderr."""

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and resources.note(error):
            return
        log.error("loop.callback_failed", what=str(context.get("message")), exc_info=error)

    return handle
