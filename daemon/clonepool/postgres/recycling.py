"""What becomes of a returned clone: its sessions ended, then rewound in place or recreated.

This is the place of the rewind. Until it exists every clone is recreated, which is always right
and never fast.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import anyio

from clonepool.postgres import databases

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway

ENDING_SECONDS = 2.0
"""How long ended sessions are awaited here; whoever drops the clone waits for the rest."""
LEAVING_SECONDS = 0.05
"""How long a session that was just closed by its client may take to disappear."""


class Outcome(StrEnum):
    """How a recycling ended."""

    REWOUND = "rewound"
    RECREATE = "recreate"


async def stray_sessions(gateway: Gateway, name: str) -> list[dict[str, Any]]:
    """Return the sessions still open on a clone whose lease ended, those just leaving left out."""
    found = await databases.sessions(gateway, name)
    if not found:
        return []
    await anyio.sleep(LEAVING_SECONDS)
    return await databases.sessions(gateway, name)


async def recycle(gateway: Gateway, name: str) -> Outcome:
    """Make the clone good again if that is provably possible, after its sessions are gone."""
    await databases.end_sessions(gateway, name, seconds=ENDING_SECONDS, clients_only=True)
    return Outcome.RECREATE
