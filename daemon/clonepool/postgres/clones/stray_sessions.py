"""Who is still connected to a returned clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from clonepool.postgres import databases
from clonepool.postgres.rewind.errors import CannotRewindError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.inspection import Look
    from clonepool.postgres.rewind.rewinder import Rewinder

T = TypeVar("T")
ENDING_SECONDS = 2.0
"""How long ended sessions are awaited before a rewind; whoever drops the clone waits longer."""
FIRST_PAUSE_SECONDS = 0.002
ARRIVING_SECONDS = 0.25
"""How long whoever is logging in may take; logging in takes a few milliseconds."""
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


async def look_at_returned(rewinder: Rewinder, name: str, *, first: str, at_server: bool) -> Look:
    """Lock the former holder of a clone out, and return what is known of it then.

    Sessions just leaving are left out. Whoever was logging in when the password was changed may
    have proven the former one by then, and is in no list yet: so it is looked again when all of
    those are in, or turned away.

    Args:
        rewinder: of the server, ours being a superuser's.
        name: of the clone.
        first: statements that lock the former holder out.
        at_server: whether to look at the server as a whole, too.

    Raises:
        LockOutError: the former holder may still come in.
        CannotRewindError: one of them does not get on: it may come in at any time.
    """
    seen = await rewinder.look(name, first=first, at_server=at_server)
    deadline, pause = anyio.current_time() + ARRIVING_SECONDS, FIRST_PAUSE_SECONDS
    arriving = set(seen.facts.presence.arriving or ())
    while arriving:
        if anyio.current_time() > deadline:
            raise CannotRewindError("somebody began to log in and does not get on")
        await anyio.sleep(pause)
        pause *= 2
        seen = await rewinder.look(name, at_server=at_server)
        arriving &= set(seen.facts.presence.arriving or ())
    return await _without_leaving(lambda: rewinder.look(name, at_server=at_server), _sessions, seen)


def _sessions(seen: Look) -> list[dict[str, Any]]:
    return seen.facts.sessions


async def _without_leaving(
    look: Callable[[], Awaitable[T]],
    sessions: Callable[[T], list[dict[str, Any]]],
    first: T | None = None,
) -> T:
    """Look again while there are sessions, until whoever is leaving must have left."""
    until, pause = anyio.current_time() + LEAVING_SECONDS, FIRST_PAUSE_SECONDS
    found = first if first is not None else await look()
    while sessions(found) and anyio.current_time() < until:
        await anyio.sleep(pause)
        pause *= 2
        found = await look()
    return found
