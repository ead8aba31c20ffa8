"""Whether every acquire was answered in time, apart from outages of the daemon or the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from soak.journal import Record

    Span = tuple[float, float]

_AWAY = frozenset({"daemon_stopping", "daemon_killing", "daemon_freezing", "daemon_gone"})
_BACK = frozenset({"daemon_up", "daemon_thawed"})
_STALLED = frozenset({"stall", "daemon_delayed"})
_ANSWERS = frozenset({"granted", "refused", "reset", "reset_refused", "lost"})


@dataclass(frozen=True)
class Answer:
    """One request and its answer; `late` is the delay that no outage explains."""

    asked: Record
    answered: Record
    overshoot: float
    late: float


def judge_answers(records: Sequence[Record]) -> tuple[list[Answer], list[Record]]:
    """Return the answered requests, and the ones that were never answered.

    A request needs no answer once its client has crashed or closed the connection.
    """
    excuses = merged([*outages(records), *stalls(records)])
    pending: dict[str, Record] = {}
    answers = []
    for record in records:
        if record["what"] == "asked":
            pending[record["ask"]] = record
        elif record["what"] in _ANSWERS and (asked := pending.pop(record.get("ask", ""), None)):
            answers.append(_measure(asked, record, excuses))
        elif record["what"] == "crashing":
            pending = {ask: p for ask, p in pending.items() if p["who"] != record["who"]}
        elif record["what"] == "closing":
            pending = {ask: p for ask, p in pending.items() if p["conn"] != record["conn"]}
    return answers, list(pending.values())


def outages(records: Iterable[Record]) -> list[Span]:
    """Return the times at which the daemon was stopped, starting, or frozen."""
    spans, since = [], None
    for record in records:
        if record["what"] in _AWAY:
            since = record["t"] if since is None else since
        elif record["what"] in _BACK and since is not None:
            spans.append((since, record["t"]))
            since = None
    return spans


def stalls(records: Iterable[Record]) -> list[Span]:
    """Return the times at which the machine ran neither the heartbeat nor the daemon."""
    return [(r["since"], r["since"] + r["seconds"]) for r in records if r["what"] in _STALLED]


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the spans without overlaps, in order."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def covered(spans: Iterable[Span], start: float, end: float) -> float:
    """Return how much of a time lies in the spans, which do not overlap."""
    return sum(max(0.0, min(end, b) - max(start, a)) for a, b in spans)


def _measure(asked: Record, answered: Record, excuses: Sequence[Span]) -> Answer:
    start, end = asked["t"], answered["t"]
    overshoot = end - start - asked["timeout"]
    excused = covered(excuses, start, end) + answered.get("delayed", 0.0) if overshoot > 0 else 0.0
    return Answer(asked, answered, overshoot, overshoot - excused)
