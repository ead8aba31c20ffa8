"""The sessions that stay on clones between rewinds.

Connecting, and filling a new backend's catalog caches, are most of what a small rewind costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clonepool.postgres.rewind.clean_state import CleanState


class KeptSessions:
    """A bounded number of sessions; the one whose clone was rewound longest ago is ended first.

    Args:
        most: how many sessions may stay.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._states: dict[str, CleanState] = {}

    @property
    def clones(self) -> set[str]:
        """Names of the clones on which a session stays."""
        return set(self._states)

    def backend_pid(self, clone: str) -> int:
        """Return the process id of the backend that stays on a clone; 0 for none."""
        state = self._states.get(clone)
        return state.backend_pid if state is not None else 0

    def keep(self, clone: str, state: CleanState) -> None:
        """Keep the session of this clone, and end others if there are too many."""
        self._states[clone] = state
        while len(self._states) > self._most:
            self.close(next(iter(self._states)))

    def close(self, clone: str) -> None:
        """End the session that stays on a clone, if there is one."""
        state = self._states.pop(clone, None)
        if state is not None:
            state.close_session()

    def take(self, clone: str) -> None:
        """Leave the session of a clone to the rewind that begins."""
        self._states.pop(clone, None)
