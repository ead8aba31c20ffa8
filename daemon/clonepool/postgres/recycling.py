"""Who is still connected to a returned clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from clonepool.postgres import databases

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.rewinder import Rewinder, Seen

T = TypeVar("T")
ENDING_SECONDS = 2.0
"""How long ended sessions are awaited before a rewind; whoever drops the clone waits longer."""
FIRST_PAUSE_SECONDS = 0.002
LEAVING_SECONDS = 0.05
"""How long a session that was just closed by its client may take to disappear."""


async def stray_sessions(gateway: Gateway, name: str, ours: int = 0) -> list[dict[str, Any]]:
    """Return the sessions still open on a clone whose lease ended, those just leaving left out.

    Args:
        gateway: the way to the server.
        name: of the clone.
        ours: process id of the backend that we keep there ourselves, 0 for none.
    """
    return await _without_leaving(lambda: databases.sessions(gateway, name, ours), list)


async def look_at_returned(rewinder: Rewinder, name: str) -> Seen:
    """Return what is known of a clone whose lease ended, sessions just leaving left out.

    Args:
        rewinder: of the server, ours being a superuser's.
        name: of the clone.
    """
    return await _without_leaving(lambda: rewinder.look(name), lambda seen: seen.facts.sessions)


async def _without_leaving(
    look: Callable[[], Awaitable[T]], sessions: Callable[[T], list[dict[str, Any]]]
) -> T:
    """Look again while there are sessions, until whoever is leaving must have left."""
    until, pause = anyio.current_time() + LEAVING_SECONDS, FIRST_PAUSE_SECONDS
    while sessions(found := await look()) and anyio.current_time() < until:
        await anyio.sleep(pause)
        pause *= 2
    return found
