"""When test workers ask for clones: four kinds of day, the same in every run.

Drawn with fixed seeds, modelled on test runners. A test is (seconds it holds its clone, seconds
until its worker asks for the next); a worker is when it begins, and its tests one after another.
"""

from __future__ import annotations

import random
from typing import NamedTuple

HOUR = 3600.0


class Worker(NamedTuple):
    """One process that runs tests, each with a clone of its own."""

    begins: float
    tests: list[tuple[float, float]]


def steady(seconds: float = 180.0, rate: float = 30.0) -> list[Worker]:
    """Return acquires at random moments, `rate` per second on average."""
    draw = random.Random(1)
    workers, now = [], 1.0
    while (now := now + draw.expovariate(rate)) < seconds:
        workers.append(Worker(now, [(draw.uniform(0.02, 0.2), 0.0)]))
    return workers


def bursts(times: int = 6, size: int = 24, every: float = 20.0) -> list[Worker]:
    """Return bursts of workers, with quiet between them."""
    draw = random.Random(2)
    return [
        Worker(1.0 + crowd * every + draw.uniform(0, 0.05), [(draw.uniform(0.3, 0.8), 0.0)])
        for crowd in range(times)
        for _ in range(size)
    ]


def xdist(begins: float = 1.0, workers: int = 16, tests: int = 60) -> list[Worker]:
    """Return a parallel test run: its workers all begin at once and go from test to test."""
    draw = random.Random(3)
    return [
        Worker(
            begins + draw.uniform(0, 0.1),
            [(draw.lognormvariate(-1.2, 0.6), draw.uniform(0.02, 0.2)) for _ in range(tests)],
        )
        for _ in range(workers)
    ]


def nightly() -> list[Worker]:
    """Return hours of nothing, then several runs close behind one another."""
    return [
        worker
        for number in range(3)
        for worker in xdist(begins=7 * HOUR + number * 45.0, workers=24, tests=40)
    ]
