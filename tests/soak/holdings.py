"""Who held which clone from when to when, out of the journals alone.

A holding begins when the client read the grant and ends at the earliest moment at which the
protocol lets it end: so two holdings of one clone that overlap are two holders, and no delay of a
process can make it look so.

    bound to its connection   released, reset, closed, crashed, or that daemon's end
    with a TTL                released, reset, given up, or the TTL since it was asked for
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from soak.journal import Record

CLOCK_SLACK = 0.01
"""Seconds that times on the wire are rounded by, and more."""


@dataclass
class Holding:
    """One lease on one clone.

    Attributes:
        mortal: whether it ends with its connection and its daemon.
        promised: until when the daemon owes it to the client.
        given_up: when the client gave it back, or stopped to care.
    """

    lease: str
    clone: str
    who: str
    conn: str
    daemon: int
    start: float
    mortal: bool
    promised: float = math.inf
    given_up: float = math.inf
    records: list[Record] = field(default_factory=list)

    @property
    def end(self) -> float:
        """When it ended, for whatever reason."""
        return min(self.promised, self.given_up)

    def end_by(self, when: float) -> None:
        """Let it have ended by then at the latest, not by its client's own wish."""
        self.promised = min(self.promised, when)

    def is_on(self, when: float) -> bool:
        """Say whether the client has the clone at that time beyond doubt."""
        return self.start <= when < self.end


class Register:
    """Reads records in the order of time and keeps the holdings."""

    def __init__(self, grace: float) -> None:
        self.all: list[Holding] = []
        self._grace = grace
        self._now: dict[str, Holding] = {}
        self._asked: dict[str, Record] = {}
        self._renewing: dict[str, Record] = {}
        self._gone: dict[int, float] = {}
        self._closed: dict[str, float] = {}

    def read(self, record: Record) -> None:
        """Take in what happened."""
        handler = getattr(self, f"_on_{record['what']}", None)
        if handler is not None:
            handler(record)
        if (lease := record.get("lease")) in self._now:
            self._now[lease].records.append(record)

    def current(self, lease: str) -> Holding | None:
        """Return what that lease holds or held last."""
        return self._now.get(lease)

    def _on_asked(self, record: Record) -> None:
        self._asked[record["ask"]] = record

    def _on_granted(self, record: Record) -> None:
        asked = self._asked.get(record["ask"], record)
        holding = Holding(
            record["lease"],
            record["clone"],
            record["who"],
            record["conn"],
            record["daemon"],
            record["t"],
            mortal=record.get("ttl") is None,
        )
        if record.get("ttl") is not None:
            holding.end_by(asked["t"] + record["ttl"] - CLOCK_SLACK)
        self._enter(holding)

    def _on_reset(self, record: Record) -> None:
        """A reset lease goes on, on another clone or on the same made clean."""
        before = self._now[record["lease"]]
        holding = Holding(
            before.lease,
            record["clone"],
            before.who,
            record["conn"],
            record["daemon"],
            record["t"],
            mortal=before.mortal,
        )
        if record.get("until") is not None:
            holding.end_by(record["until"])
        self._enter(holding)

    def _enter(self, holding: Holding) -> None:
        if holding.mortal:
            holding.end_by(self._gone.get(holding.daemon, math.inf))
            holding.end_by(self._closed.get(holding.conn, math.inf))
        self._now[holding.lease] = holding
        self.all.append(holding)

    def _on_releasing(self, record: Record) -> None:
        if record["lease"] in self._now:
            self._now[record["lease"]].given_up = record["t"]

    _on_resetting = _on_releasing
    _on_abandoned = _on_releasing
    """The client touches it no more; whatever the daemon may think."""

    def _on_renewing(self, record: Record) -> None:
        """Between the old end and the new one nobody knows: the earlier counts."""
        self._renewing[record["lease"]] = record

    def _on_renewed(self, record: Record) -> None:
        holding = self._now[record["lease"]]
        if holding.is_on(record["t"]):
            began = self._renewing[record["lease"]]
            holding.mortal = False
            holding.promised = began["t"] + record["ttl"] - CLOCK_SLACK

    def _on_closing(self, record: Record) -> None:
        """A connection ends, and what is bound to it."""
        self._closed[record["conn"]] = record["t"]
        self._end_those(lambda h: h.mortal and h.conn == record["conn"], record["t"])

    def _on_crashing(self, record: Record) -> None:
        self._end_those(lambda h: h.mortal and h.who == record["who"], record["t"])

    def _on_client_ended(self, record: Record) -> None:
        self._end_those(lambda h: h.mortal and h.who == record["client"], record["t"])

    def _on_daemon_stopping(self, record: Record) -> None:
        """It leaves leases alone for its grace, and no longer."""
        self._part(record["pid"], record["t"] + self._grace - CLOCK_SLACK)

    def _on_daemon_gone(self, record: Record) -> None:
        self._part(record["pid"], record["t"])

    def _part(self, pid: int, when: float) -> None:
        self._gone[pid] = min(when, self._gone.get(pid, math.inf))
        self._end_those(lambda h: h.mortal and h.daemon == pid, when)

    def _end_those(self, which: Callable[[Holding], bool], when: float) -> None:
        for holding in self._now.values():
            if which(holding):
                holding.end_by(when)


def overlaps(holdings: Iterable[Holding]) -> list[tuple[Holding, Holding]]:
    """Return pairs of holdings of one clone by two leases at the same time."""
    latest: dict[str, Holding] = {}
    found = []
    for holding in sorted(holdings, key=lambda h: h.start):
        if holding.end <= holding.start:
            continue
        before = latest.get(holding.clone)
        if before is not None and before.end > holding.start:
            found.append((before, holding))
        if before is None or holding.end > before.end:
            latest[holding.clone] = holding
    return found
