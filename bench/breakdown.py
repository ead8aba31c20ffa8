"""The parts of a recycle, measured on the code of the rewind in this process.

The daemon does more at the same time, and sends replies; `recycling` measures all of that from
outside.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bench import work
from bench.samples import summary
from clonepool.postgres import databases
from clonepool.postgres.capabilities import inspect
from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway
from clonepool.postgres.rewind.rewinder import Rewinder

if TYPE_CHECKING:
    from clonepool.postgres.session import Session

CLONE = "bench_breakdown"
SCRIPTS = {"read_only": work.READS, "four_tables": work.WRITES}


class TimedGateway(Gateway):
    """A gateway that knows how long it has spent connecting, in seconds."""

    connecting = 0.0

    async def connect(self, *arguments: Any, **options: Any) -> Session:
        """Connect, and take the time."""
        began = time.perf_counter()
        try:
            return await super().connect(*arguments, **options)
        finally:
            self.connecting += time.perf_counter() - began


async def measure(url: str, source: str, rounds: int) -> dict[str, Any]:
    """Rewind a clone of a generation after each script in turn; return seconds by part.

    Parts that took no time, such as connecting to a clone that only was read, are left out.

    Args:
        url: of any database on the daemon's server, as a superuser.
        source: the generation's database, of the template of many small tables.
        rounds: how often.

    Raises:
        ClonepoolError: the clone was not rewound; of this template it always can be.
    """
    endpoint = from_url(url)
    gateway = TimedGateway(endpoint, "bench")
    rewinder = await _make_clone(gateway, source)
    parts: dict[str, dict[str, list[float]]] = {name: {} for name in SCRIPTS}
    try:
        for _ in range(rounds):
            for name, script in SCRIPTS.items():
                await work.visit(endpoint.url(CLONE), script)
                for part, seconds in (await _recycle(gateway, rewinder)).items():
                    parts[name].setdefault(part, []).append(seconds)
    finally:
        await rewinder.close()
        await databases.drop(gateway, CLONE)
        await gateway.close()
    return {
        name: {part: summary(times) for part, times in found.items() if any(times)}
        for name, found in parts.items()
    }


async def _make_clone(gateway: Gateway, source: str) -> Rewinder:
    """Make a clone of our own, of which the daemon knows nothing, and take its measure."""
    capabilities = await inspect(gateway)
    await databases.create(gateway, CLONE, source, "", 60.0)
    rewinder = Rewinder(gateway, _make_reference, capabilities.major)
    await rewinder.track(CLONE, source)
    return rewinder


async def _make_reference(generation: str) -> str:
    """Say that small tables are put back from memory: no second copy is needed."""
    raise NotImplementedError(generation)


async def _recycle(gateway: TimedGateway, rewinder: Rewinder) -> dict[str, float]:
    began = time.perf_counter()
    await databases.end_sessions(gateway, CLONE, clients_only=True)
    gateway.connecting, alone = 0.0, time.perf_counter()
    await rewinder.rewind(CLONE, {})
    done = time.perf_counter()
    return {
        "whole": done - began,
        "end_sessions": alone - began,
        "connect": gateway.connecting,
        "rest": done - alone - gateway.connecting,
    }
