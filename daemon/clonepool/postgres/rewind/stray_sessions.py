"""Finds the sessions that are still open on a returned clone, and locks its former holder out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from clonepool.core.backoff import Backoff
from clonepool.postgres import databases
from clonepool.postgres.rewind.errors import CannotRewindError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.inspection import Inspection
    from clonepool.postgres.rewind.rewinder import Rewinder

T = TypeVar("T")
ENDING_SECONDS = 2.0
"""Time that sessions have to end before a rewind; before a drop they have more."""
FIRST_PAUSE_SECONDS = 0.002
"""Seconds before a clone is inspected again; each further pause is twice as long."""
LOGIN_SECONDS = 0.25
"""Time that a backend may take to log in, which usually takes a few milliseconds."""
LEAVING_SECONDS = 0.05
"""Time that a session may take to disappear after its client has closed it."""


async def stray_sessions(gateway: Gateway, name: str, ours: int = 0) -> list[dict[str, Any]]:
    """Return the sessions that are open on a clone whose lease has ended.

    Sessions that have just been closed get a moment to disappear.

    Args:
        gateway: the way to the server.
        name: of the clone.
        ours: process id of the daemon's own backend there; 0 for none.
    """
    return await _after_leaving(lambda: databases.sessions(gateway, name, ours), list)


async def inspect_returned(
    rewinder: Rewinder, name: str, *, lock_out: str, with_shared: bool
) -> Inspection:
    """Lock the former holder of a clone out, and inspect the clone.

    A backend that is logging in may have checked the former password already, and is not listed as
    a session yet. So if there are any, the clone is inspected again until each of them is listed or
    gone. Sessions that have just been closed get a moment to disappear.

    Args:
        rewinder: of the server.
        name: of the clone.
        lock_out: statements that lock the former holder out.
        with_shared: whether to ask for the digest of the state that all databases share.

    Raises:
        LockOutError: the former holder was not locked out.
        CannotRewindError: a backend does not finish logging in, and may come in at any time.
    """
    inspection = await rewinder.inspect(name, lock_out=lock_out, with_shared=with_shared)
    deadline = anyio.current_time() + LOGIN_SECONDS
    backoff = Backoff(FIRST_PAUSE_SECONDS, LOGIN_SECONDS)
    logging_in = set(inspection.facts.activity.logging_in or ())
    while logging_in:
        if anyio.current_time() > deadline:
            raise CannotRewindError("a backend does not finish logging in")
        await anyio.sleep(backoff.next_pause())
        inspection = await rewinder.inspect(name, with_shared=with_shared)
        logging_in &= set(inspection.facts.activity.logging_in or ())
    return await _after_leaving(
        lambda: rewinder.inspect(name, with_shared=with_shared),
        lambda found: found.facts.sessions,
        inspection,
    )


async def _after_leaving(
    ask: Callable[[], Awaitable[T]],
    sessions: Callable[[T], list[dict[str, Any]]],
    first: T | None = None,
) -> T:
    """Ask again while there are sessions, until those that are leaving must have left."""
    until = anyio.current_time() + LEAVING_SECONDS
    backoff = Backoff(FIRST_PAUSE_SECONDS, LEAVING_SECONDS)
    found = first if first is not None else await ask()
    while sessions(found) and anyio.current_time() < until:
        await anyio.sleep(backoff.next_pause())
        found = await ask()
    return found
