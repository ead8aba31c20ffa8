"""Which client is told what a lease left on its clone, once the job for the clone has looked.

A client that asked for a report waits for it as the reply to its release. Any other client that
released, and the holder of a lease that expired, is sent `lease.leaked` when something was left.
The jobs find out what was left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from clonepool.protocol.messages import Leaked, LeaseLeaks, ReleaseResult

if TYPE_CHECKING:
    from clonepool.service.call import Call

    Sessions = list[dict[str, Any]] | None
    """The sessions and changes that a lease left; None when that could not be found out."""


class Connections(Protocol):
    """The connected clients, by number."""

    def is_connected(self, number: int) -> bool:
        """Say whether that connection is open."""

    def notify(self, number: int, method: str, params: object) -> None:
        """Send a notification to a connection; one that has ended is not told."""


class _Listening(NamedTuple):
    """Where a report goes: as the reply to `call`, else as a notification to a connection."""

    template: str
    number: int
    call: Call | None
    keep_seconds: float | None


class ReleaseReports:
    """The clones whose leases have just ended, and the client to be told what is left on each."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._listening: dict[str, _Listening] = {}

    @property
    def owed(self) -> int:
        """How many calls wait for a report as their reply."""
        return sum(listening.call is not None for listening in self._listening.values())

    def expect(self, template: str, clone: str, number: int) -> None:
        """Notify a connection, if it is open, of what is left on the clone."""
        self._listening.pop(clone, None)
        if self._connections.is_connected(number):
            self._listening[clone] = _Listening(template, number, None, None)

    def owe(
        self, template: str, clone: str, call: Call, *, keep_seconds: float | None = None
    ) -> None:
        """Reply to a release with what is left on the clone.

        Args:
            template: of the clone.
            clone: its database.
            call: the release.
            keep_seconds: how long the clone is to be kept; None when it is recycled.
        """
        self._listening[clone] = _Listening(template, call.holder, call, keep_seconds)

    def is_awaited(self, clone: str) -> bool:
        """Say whether a client is to be told what is left on the clone."""
        return clone in self._listening

    def lease_left(self, clone: str, leaked: Sessions) -> None:
        """Tell what the job found on the clone; only the first report of a lease is told."""
        self._tell(clone, leaked, kept=False)

    def lease_kept(self, clone: str, leaked: Sessions, *, written_down: bool) -> None:
        """Tell what the job found on the clone, and whether it is written down that it is kept."""
        self._tell(clone, leaked, kept=written_down)

    def _tell(self, clone: str, leaked: Sessions, *, kept: bool) -> None:
        listening = self._listening.pop(clone, None)
        if listening is None:
            return
        found = None if leaked is None else msgspec.convert(leaked, list[Leaked])
        if listening.call is None:
            if found:
                told = LeaseLeaks(listening.template, clone, found)
                self._connections.notify(listening.number, "lease.leaked", told)
            return
        if listening.keep_seconds is None:
            listening.call.reply(ReleaseResult(found))
        else:
            listening.call.reply(
                ReleaseResult(found, clone, listening.keep_seconds if kept else None)
            )
