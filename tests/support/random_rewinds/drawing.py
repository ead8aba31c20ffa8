"""Values of a hypothesis strategy by a seed, for runs that are not hypothesis tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def drawn(strategy: SearchStrategy[T], count: int, seeded: str) -> list[T]:
    """Return `count` values, the same for the same seed.

    The first that hypothesis makes is the simplest there is, each time: it is left out.
    """
    found: list[T] = []

    @seed(seeded)
    @settings(
        max_examples=count + 1, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet,
    )  # fmt: skip
    @given(strategy)
    def take(value: T) -> None:
        found.append(value)

    take()
    return found[1:]
