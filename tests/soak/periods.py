"""Which lease had which clone, and when, according to the journals alone.

A period begins when the client read the grant and ends at the earliest moment at which the protocol
lets it end. So if two periods of one clone overlap, two leases had it at once: a delayed process
cannot cause that.

    bound to its connection   released, reset, closed, crashed, or that daemon's end
    with a TTL                released, reset, given up, or the TTL since the request
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from soak.journal import Record

CLOCK_SLACK = 0.01
"""Seconds subtracted from deadlines, because times in messages are rounded."""


@dataclass
class LeasePeriod:
    """The time for which one lease has one clone.

    Attributes:
        bound: whether it ends with its connection and its daemon.
        promised: time until which the daemon must leave the clone to the client.
        given_up: time at which the client returned or abandoned it.
    """

    lease: str
    clone: str
    who: str
    conn: str
    daemon: int
    start: float
    bound: bool
    promised: float = math.inf
    given_up: float = math.inf
    records: list[Record] = field(default_factory=list)

    @property
    def end(self) -> float:
        """Time at which it ended."""
        return min(self.promised, self.given_up)

    def end_by(self, when: float) -> None:
        """Record that it ended by then at the latest, other than by its client."""
        self.promised = min(self.promised, when)

    def covers(self, when: float) -> bool:
        """Say whether the client certainly has the clone at that time."""
        return self.start <= when < self.end


class LeasePeriods:
    """Derives the periods from records, which are read in the order of time."""

    def __init__(self, grace: float) -> None:
        self.all: list[LeasePeriod] = []
        self._grace = grace
        self._now: dict[str, LeasePeriod] = {}
        self._asked: dict[str, Record] = {}
        self._renewing: dict[str, Record] = {}
        self._gone: dict[int, float] = {}
        self._closed: dict[str, float] = {}

    def read(self, record: Record) -> None:
        """Apply one record."""
        handler = getattr(self, f"_on_{record['what']}", None)
        if handler is not None:
            handler(record)
        if (lease := record.get("lease")) in self._now:
            self._now[lease].records.append(record)

    def current(self, lease: str) -> LeasePeriod | None:
        """Return the present or last period of a lease."""
        return self._now.get(lease)

    def _on_asked(self, record: Record) -> None:
        self._asked[record["ask"]] = record

    def _on_granted(self, record: Record) -> None:
        asked = self._asked.get(record["ask"], record)
        period = LeasePeriod(
            record["lease"],
            record["clone"],
            record["who"],
            record["conn"],
            record["daemon"],
            record["t"],
            bound=record.get("ttl") is None,
        )
        if record.get("ttl") is not None:
            period.end_by(asked["t"] + record["ttl"] - CLOCK_SLACK)
        self._enter(period)

    def _on_reset(self, record: Record) -> None:
        """A reset lease continues, with another clone or with its own cleaned."""
        before = self._now[record["lease"]]
        period = LeasePeriod(
            before.lease,
            record["clone"],
            before.who,
            record["conn"],
            record["daemon"],
            record["t"],
            bound=before.bound,
        )
        if record.get("until") is not None:
            period.end_by(record["until"])
        self._enter(period)

    def _enter(self, period: LeasePeriod) -> None:
        if period.bound:
            period.end_by(self._gone.get(period.daemon, math.inf))
            period.end_by(self._closed.get(period.conn, math.inf))
        self._now[period.lease] = period
        self.all.append(period)

    def _on_releasing(self, record: Record) -> None:
        if record["lease"] in self._now:
            self._now[record["lease"]].given_up = record["t"]

    _on_resetting = _on_releasing
    _on_abandoned = _on_releasing
    """From then on the client does not use the clone."""

    def _on_renewing(self, record: Record) -> None:
        """Until the reply is there, the earlier end counts."""
        self._renewing[record["lease"]] = record

    def _on_renewed(self, record: Record) -> None:
        period = self._now[record["lease"]]
        if period.covers(record["t"]):
            began = self._renewing[record["lease"]]
            period.bound = False
            period.promised = began["t"] + record["ttl"] - CLOCK_SLACK

    def _on_closing(self, record: Record) -> None:
        """A connection ends, and with it the leases bound to it."""
        self._closed[record["conn"]] = record["t"]
        self._end_those(lambda h: h.bound and h.conn == record["conn"], record["t"])

    def _on_crashing(self, record: Record) -> None:
        self._end_those(lambda h: h.bound and h.who == record["who"], record["t"])

    def _on_client_ended(self, record: Record) -> None:
        self._end_those(lambda h: h.bound and h.who == record["client"], record["t"])

    def _on_daemon_stopping(self, record: Record) -> None:
        """The daemon lets leases continue for its grace period only."""
        self._part(record["pid"], record["t"] + self._grace - CLOCK_SLACK)

    def _on_daemon_gone(self, record: Record) -> None:
        self._part(record["pid"], record["t"])

    def _part(self, pid: int, when: float) -> None:
        self._gone[pid] = min(when, self._gone.get(pid, math.inf))
        self._end_those(lambda h: h.bound and h.daemon == pid, when)

    def _end_those(self, which: Callable[[LeasePeriod], bool], when: float) -> None:
        for period in self._now.values():
            if which(period):
                period.end_by(when)


def overlaps(periods: Iterable[LeasePeriod]) -> list[tuple[LeasePeriod, LeasePeriod]]:
    """Return the pairs of periods of one clone that overlap."""
    latest: dict[str, LeasePeriod] = {}
    found = []
    for period in sorted(periods, key=lambda h: h.start):
        if period.end <= period.start:
            continue
        before = latest.get(period.clone)
        if before is not None and before.end > period.start:
            found.append((before, period))
        if before is None or period.end > before.end:
            latest[period.clone] = period
    return found
