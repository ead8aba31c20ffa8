"""A fleet whose clones the test makes by events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.core import events as ev
from clonepool.core.decisions import CreateClone, Decision, Drop, Grant, Recycle, Refuse, Request
from clonepool.core.fleet import Fleet
from clonepool.core.limits import Limits
from clonepool.core.naming import Namer, Serials

if TYPE_CHECKING:
    from collections.abc import Iterable


def make_fleet(
    max_clones: int = 100,
    *,
    ready_templates: bool = True,
    shrink_after: float = 60.0,
    rewinds: bool = False,
    **limits: tuple[int, int],
) -> tuple[Fleet, list[Decision]]:
    """Return a fleet with these (min_ready, max_clones), and its first decisions."""
    fleet = Fleet(
        {
            name: Limits(*pair, shrink_after=shrink_after, rewinds=rewinds)
            for name, pair in limits.items()
        },
        max_clones,
        Namer("test", 1),
        Serials(0),
    )
    decisions: list[Decision] = []
    if ready_templates:
        for pool in fleet.pools.values():
            decisions += fleet.handle(ev.TemplateReady(pool.template, "abcdefgh"), 0.0)
    return fleet, decisions


def request(waiter: int, *, holder: int = 1, at: float = 0.0, timeout: float = 10.0) -> Request:
    """Return an acquire."""
    return Request(waiter, f"token-{waiter}", holder, f"client {holder}", at, at + timeout)


def finish_creates(fleet: Fleet, decisions: Iterable[Decision], now: float = 0.0) -> list[Decision]:
    """Report each clone to be created as created; return the resulting decisions."""
    return [
        after
        for decision in decisions
        if isinstance(decision, CreateClone)
        for after in fleet.handle(ev.CloneCreated(decision.template, decision.clone), now)
    ]


def grants(decisions: Iterable[Decision]) -> list[Grant]:
    """Return the grants."""
    return [d for d in decisions if isinstance(d, Grant)]


def refusals(decisions: Iterable[Decision]) -> list[Refuse]:
    """Return the refusals."""
    return [d for d in decisions if isinstance(d, Refuse)]


def creates(decisions: Iterable[Decision]) -> list[CreateClone]:
    """Return the clones to make."""
    return [d for d in decisions if isinstance(d, CreateClone)]


def drops(decisions: Iterable[Decision]) -> list[Drop]:
    """Return the clones to drop."""
    return [d for d in decisions if isinstance(d, Drop)]


def recycles(decisions: Iterable[Decision]) -> list[Recycle]:
    """Return the clones to recycle."""
    return [d for d in decisions if isinstance(d, Recycle)]
