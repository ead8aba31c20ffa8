"""Acquires in a burst, and after a pause, each compared with a cheaper request.

In a burst an acquire is compared with a ping: the refill that it causes must not delay the next
request. After a pause, when caches are cold, it is compared with a request to the smallest server
in Python after the same pause.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import peers
from bench.samples import ratios, summary
from clonepool.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
BURST = 20
"""Requests in a burst, of which the first is not counted: it finds the daemon idle."""
READY = 2 * BURST
"""Clones held ready: each acquire is a hit."""
PAUSE_SECONDS = 0.03
"""Seconds before each request that is measured after a pause."""
PAUSES = 10
"""Requests of each kind after a pause, in one round."""
CALM_SECONDS = 0.05
"""Seconds before a burst, for the jobs that the last one caused."""

CONFIG = """\
[http]
listen = ""
[pool]
max_clones = {most}
[templates.blog]
sql = ["{root}/examples/blog/*.sql"]
min_ready = {ready}
max_clones = {most}
"""


def run(directory: Path, *, short: bool) -> dict[str, Any]:
    """Measure on a daemon with more room than clones; return the figures, times in seconds."""
    rounds = 2 if short else 30
    directory.mkdir(mode=0o711, exist_ok=True)
    config = CONFIG.format(root=ROOT, ready=READY, most=3 * READY)
    with (
        peers.daemon(directory, config) as (path, pid),
        Client(str(path), name="bench") as client,
    ):
        result = _rest(client, [client.call("acquire", template="blog")])
        with (
            peers.floor(directory, json.dumps(result)) as (floor_path, floor_pid),
            Client(str(floor_path), name="bench") as floor,
            peers.apart([pid, floor_pid]),
        ):
            times = _measure(client, floor, rounds)
    figures: dict[str, Any] = {name: summary(found) for name, found in times.items()}
    figures["acquire_over_ping"] = ratios(figures["acquire"], figures["ping"])
    figures["acquire_over_floor_after_pause"] = ratios(
        figures["acquire_after_pause"], figures["floor_after_pause"]
    )
    return figures


def _measure(client: Client, floor: Client, rounds: int) -> dict[str, list[float]]:
    names = ("ping", "acquire", "acquire_after_pause", "floor_after_pause")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        _burst(times["ping"], lambda: client.call("ping"))
        _rest(client, _burst(times["acquire"], lambda: client.call("acquire", template="blog")))
        taken = []
        for _ in range(PAUSES):
            taken += _after_pause(
                times["acquire_after_pause"], lambda: client.call("acquire", template="blog")
            )
            _after_pause(times["floor_after_pause"], lambda: floor.call("acquire", template="blog"))
        _rest(client, taken)
    return times


def _burst(times: list[float], call: Callable[[], Any]) -> list[Any]:
    """Call again and again, and keep the times of all calls but the first."""
    found, taken = [], []
    for _ in range(BURST):
        began = time.perf_counter()
        found.append(call())
        taken.append(time.perf_counter() - began)
    times += taken[1:]
    return found


def _after_pause(times: list[float], call: Callable[[], Any]) -> list[Any]:
    time.sleep(PAUSE_SECONDS)
    began = time.perf_counter()
    found = call()
    times.append(time.perf_counter() - began)
    return [found]


def _rest(client: Client, taken: list[Any]) -> Any:
    """Give back what was taken, wait until the pool is at rest, and return the last of it."""
    for result in taken:
        client.call("release", lease=result["lease"])
    peers.await_rest(client)
    time.sleep(CALM_SECONDS)
    return taken[-1]
