"""The leases of one pool: by token, by holder, and by the time that ends them.

How leases begin and end is in `leasing`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from clonepool.core.deadlines import Deadlines
from clonepool.core.decisions import News

if TYPE_CHECKING:
    from collections.abc import ItemsView, ValuesView

    from clonepool.core.decisions import Lease

LONGEST_WARNING_SECONDS = 60.0
"""Seconds before its end at which the holder of a long lease is warned."""
WARNING_SHARE = 0.2
"""Share of a short lease's time that is left when its holder is warned."""
_DIGEST = "sha256:"


def token_digest(token: str) -> str:
    """Return what stands for a token where others can read it: in a database's comment."""
    return f"{_DIGEST}{hashlib.sha256(token.encode()).hexdigest()}"


def is_digest(token: str) -> bool:
    """Say whether this is what `token_digest` returns, and so no token: it names nothing."""
    return token.startswith(_DIGEST)


class LeaseBook:
    """Who has what. A lease found again after a restart is known only by its token's digest.

    Args:
        template: whose leases these are.
        templates: by token, or its digest, of the leases of all pools; kept here for this one.

    Attributes:
        connection_bound: how many leases do not outlive their connections.
    """

    def __init__(self, template: str = "", templates: dict[str, str] | None = None) -> None:
        self._template = template
        self._templates: dict[str, str] = {} if templates is None else templates
        self._leases: dict[str, Lease] = {}
        self._held: dict[int, dict[str, None]] = {}
        self._times: Deadlines[tuple[str, News]] = Deadlines()
        self.connection_bound = 0

    def __len__(self) -> int:
        return len(self._leases)

    def items(self) -> ItemsView[str, Lease]:
        """Return tokens, or digests of them, and leases."""
        return self._leases.items()

    def values(self) -> ValuesView[Lease]:
        """Return the leases, in the order in which they were entered."""
        return self._leases.values()

    def find(self, token: str) -> Lease | None:
        """Return the lease of that token, or None; it may be known only by its digest."""
        if is_digest(token):
            return None
        lease = self._leases.get(token)
        if lease is None and (found := self._leases.get(token_digest(token))) is not None:
            return msgspec.structs.replace(found, token=token)
        return lease

    def learn(self, token: str) -> None:
        """Know a lease by its token from now on, if it was known by its digest."""
        if token not in self._leases and (found := self._leases.get(token_digest(token))):
            self.end(found)
            self.enter(msgspec.structs.replace(found, token=token))

    def current(self, lease: Lease) -> Lease | None:
        """Return what has become of a lease, None when it has ended."""
        return self._leases.get(lease.token)

    def held_by(self, holder: int) -> list[Lease]:
        """Return the leases that end with that connection, in the order of their beginning."""
        return [self._leases[token] for token in self._held.get(holder, ())]

    def count_held_by(self, holder: int) -> int:
        """Return how many leases end with that connection."""
        return len(self._held.get(holder, ()))

    def enter(self, lease: Lease) -> None:
        """Add a lease, or put it in the place of the one with its token."""
        token = lease.token
        if token in self._leases:
            self.end(lease)
        self._leases[token] = lease
        self._templates[token] = self._template
        if not lease.outlives_connection:
            self.connection_bound += 1
            self._held.setdefault(lease.holder, {})[token] = None
        if lease.expires_at is not None:
            warn_at = lease.expires_at - _warning_seconds(lease, lease.expires_at)
            self._times.set((token, News.EXPIRING), warn_at)
            self._times.set((token, News.EXPIRED), lease.expires_at)

    def end(self, lease: Lease) -> None:
        """Remove a lease."""
        ended = self._leases.pop(lease.token)
        del self._templates[ended.token]
        if not ended.outlives_connection:
            self.connection_bound -= 1
            held = self._held[ended.holder]
            del held[ended.token]
            if not held:
                del self._held[ended.holder]
        if ended.expires_at is not None:
            self._times.discard((ended.token, News.EXPIRING))
            self._times.discard((ended.token, News.EXPIRED))

    def pop_due(self, now: float) -> list[tuple[News, Lease]]:
        """Return what time has brought, each once; the leases stay until they are ended."""
        return [(news, self._leases[token]) for token, news in self._times.pop_due(now)]

    def next_time(self) -> float | None:
        """Return when `pop_due` has something to say, in monotonic seconds."""
        return self._times.first()


def _warning_seconds(lease: Lease, expires_at: float) -> float:
    whole = expires_at - lease.granted_at if lease.ttl is None else lease.ttl
    return min(LONGEST_WARNING_SECONDS, WARNING_SHARE * whole)
