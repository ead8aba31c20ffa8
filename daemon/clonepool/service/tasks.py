"""Tasks that must not take everybody down with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool import resource_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger()


async def guarded(work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Let a mistake of ours cost one clone or one template, and not everybody the daemon."""
    try:
        await work(*arguments)
    except Exception as error:
        short = resource_errors.shortage(error)
        if short is not None:
            log.warning("work.not_done", work=repr(arguments[:1]), short_of=short)
        else:
            log.exception("work.failed", work=repr(arguments[:1]))
