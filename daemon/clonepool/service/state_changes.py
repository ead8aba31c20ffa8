"""Waiting inside the process until a predicate holds, without polling.

As with `asyncio.Condition`, a change of the state is notified, and a waiter names a predicate. Here
the predicates are checked in a callback of the event loop: a notification costs next to nothing,
however often it comes and whatever the predicates cost, and a waiting task is woken only when its
predicate holds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHECK_SECONDS = 0.005
"""Seconds from a notification to the check of the predicates."""


class StateChanges:
    """Notified of changes of state; wakes the tasks whose predicate then holds.

    The dispatcher has one and notifies it after every event, so that jobs, monitors, the stop of
    the daemon and tests can wait for a state of the pools.
    """

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self._check_is_due = False

    def notify(self) -> None:
        """Schedule a check of the predicates: the state may have changed."""
        if self._waiters and not self._check_is_due:
            self._check_is_due = True
            asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Return once the predicate holds; at once if it holds already.

        It can be another task's turn before the waiter continues, so the predicate may not hold any
        more by then.

        Args:
            predicate: a question about state whose changes are notified. It must be quick, without
                effects, and must not raise.
        """
        if predicate():
            return
        woken = asyncio.get_running_loop().create_future()
        self._waiters[woken] = predicate
        try:
            await woken
        finally:
            self._waiters.pop(woken, None)

    def _check(self) -> None:
        self._check_is_due = False
        for woken, predicate in list(self._waiters.items()):
            if not woken.done() and predicate():
                woken.set_result(None)
