"""The leases of one pool: by token, by holder, and by the time that ends them."""

from __future__ import annotations

import hashlib
import heapq
from typing import TYPE_CHECKING

import msgspec

from clonepool.core.decisions import News

if TYPE_CHECKING:
    from collections.abc import ItemsView, ValuesView

    from clonepool.core.decisions import Lease

LONGEST_WARNING_SECONDS = 60.0
WARNING_SHARE = 0.2
"""A holder is warned when this much of the lease's time is left, or a minute if that is less."""


_SPARE_ENTRIES = 64
_DIGEST = "sha256:"


def token_digest(token: str) -> str:
    """Return what stands for a token where others can read it: in a database's comment."""
    return f"{_DIGEST}{hashlib.sha256(token.encode()).hexdigest()}"


class LeaseBook:
    """Who has what. A lease found again after a restart is known by its token's digest alone."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._held: dict[int, set[str]] = {}
        self._times: list[tuple[float, News, str, float]] = []

    def __len__(self) -> int:
        return len(self._leases)

    def items(self) -> ItemsView[str, Lease]:
        """Return tokens, or digests of them, and leases."""
        return self._leases.items()

    def values(self) -> ValuesView[Lease]:
        """Return the leases, in the order in which they were entered."""
        return self._leases.values()

    def find(self, token: str) -> Lease | None:
        """Return the lease of that token, or None.

        A lease that was known by its digest is known by its token from then on. The digest itself,
        which others can read, names nothing.
        """
        if token.startswith(_DIGEST):
            return None
        lease = self._leases.get(token)
        if lease is None and (found := self._leases.get(token_digest(token))) is not None:
            self.end(found)
            lease = msgspec.structs.replace(found, token=token)
            self.enter(lease)
        return lease

    def current(self, lease: Lease) -> Lease | None:
        """Return what has become of a lease, None when it has ended."""
        return self._leases.get(lease.token)

    def held_by(self, holder: int) -> list[Lease]:
        """Return the leases that end with that connection."""
        return [self._leases[token] for token in self._held.get(holder, ())]

    def count_held_by(self, holder: int) -> int:
        """Return how many leases end with that connection."""
        return len(self._held.get(holder, ()))

    def enter(self, lease: Lease) -> None:
        """Add a lease, or put it in the place of the one with its token."""
        if lease.token in self._leases:
            self.end(lease)
        self._leases[lease.token] = lease
        if not lease.outlives_connection:
            self._held.setdefault(lease.holder, set()).add(lease.token)
        if lease.expires_at is not None:
            warn_at = lease.expires_at - _warning_seconds(lease, lease.expires_at)
            for at, news in ((warn_at, News.EXPIRING), (lease.expires_at, News.EXPIRED)):
                heapq.heappush(self._times, (at, news, lease.token, lease.expires_at))
            self._tidy()

    def end(self, lease: Lease) -> None:
        """Strike a lease out."""
        ended = self._leases.pop(lease.token)
        held = self._held.get(ended.holder)
        if held is not None:
            held.discard(ended.token)
            if not held:
                del self._held[ended.holder]

    def pop_due(self, now: float) -> list[tuple[News, Lease]]:
        """Return what time has brought, each once; the leases stay until they are ended."""
        due: dict[tuple[News, str], Lease] = {}
        while (at := self.next_time()) is not None and at <= now:
            _, news, token, _ = heapq.heappop(self._times)
            # A renewal that changed nothing has left a second entry.
            due[news, token] = self._leases[token]
        return [(news, lease) for (news, _), lease in due.items()]

    def next_time(self) -> float | None:
        """Return when `pop_due` has something to say, in monotonic seconds."""
        while self._times and not self._is_current(self._times[0]):
            heapq.heappop(self._times)
        return self._times[0][0] if self._times else None

    def _tidy(self) -> None:
        """Forget the times of renewed and ended leases before they outnumber the others."""
        if len(self._times) > 4 * len(self._leases) + _SPARE_ENTRIES:
            self._times = [entry for entry in self._times if self._is_current(entry)]
            heapq.heapify(self._times)

    def _is_current(self, entry: tuple[float, News, str, float]) -> bool:
        """Say whether the lease still ends when it did as the entry was made."""
        lease = self._leases.get(entry[2])
        return lease is not None and lease.expires_at == entry[3]


def _warning_seconds(lease: Lease, expires_at: float) -> float:
    whole = expires_at - lease.granted_at if lease.ttl is None else lease.ttl
    return min(LONGEST_WARNING_SECONDS, WARNING_SHARE * whole)
