"""What becomes of an exception in a callback of the event loop: one line, none for a shortage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from clonepool.service.monitors.resources import ResourceMonitor

log = structlog.get_logger()


def handler(
    shortages: ResourceMonitor,
) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return what the loop is to call; by itself it would print a traceback on stderr."""

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and shortages.note(error):
            return
        log.error("loop.callback_failed", what=str(context.get("message")), exc_info=error)

    return handle
