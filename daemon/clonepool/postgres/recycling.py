"""Who is still connected to a returned clone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from clonepool.postgres import databases

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway

ENDING_SECONDS = 2.0
"""How long ended sessions are awaited before a rewind; whoever drops the clone waits longer."""
LEAVING_SECONDS = 0.05
"""How long a session that was just closed by its client may take to disappear."""


async def stray_sessions(gateway: Gateway, name: str) -> list[dict[str, Any]]:
    """Return the sessions still open on a clone whose lease ended, those just leaving left out."""
    found = await databases.sessions(gateway, name)
    if not found:
        return []
    await anyio.sleep(LEAVING_SECONDS)
    return await databases.sessions(gateway, name)
