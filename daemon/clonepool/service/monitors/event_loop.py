"""Measures how late the event loop is: every lease waits for it, whatever else goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Histogram

BEAT_SECONDS = 0.25
"""How often: what holds the loop up for so long is met for certain, something shorter by chance,
and so in proportion to the time it takes."""


async def run(lag_seconds: Histogram, now: Callable[[], float]) -> None:
    """Sleep for one beat after another, and count how much later each ended, for ever."""
    while True:
        due = now() + BEAT_SECONDS
        await anyio.sleep(BEAT_SECONDS)
        lag_seconds.observe(max(0.0, now() - due))
