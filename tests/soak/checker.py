"""Reads the journals of a run and reports every record that breaks a promise of the protocol.

It shares no code with the daemon. Each rule is a function from records to problems;
`tests/unit/test_soak_checker.py` breaks each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from soak.deadlines import judge_answers
from soak.periods import LeasePeriod, LeasePeriods, overlaps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from soak.journal import Record

EXPECTED_REFUSALS = frozenset(
    {"acquire_timeout", "pool_full", "server_unavailable", "shutting_down"}
)
_BAD_VERDICTS = frozenset({"dirty", "foreign", "missing", "odd"})
_REFUSED = frozenset({"release_refused", "reset_refused", "renew_refused"})
_MISTAKES: dict[str, tuple[Callable[[Record], bool], str, str]] = {
    "refused": (
        lambda r: r["code"] not in EXPECTED_REFUSALS,
        "refusals",
        "an acquire was refused for no reason that this soak gives",
    ),
    "stale_accepted": (lambda _: True, "tokens", "a token that is worth nothing was accepted"),
    "stale_refused": (
        lambda r: r["code"] != "not_your_lease",
        "tokens",
        "a stale token was refused for another reason",
    ),
    "daemon_gone": (
        lambda r: not r["asked"] or r["exit"] not in (0, -9),
        "alive",
        "the daemon ended unasked, or badly",
    ),
    "client_ended": (lambda r: not r["expected"], "clients", "a client ended unexpectedly"),
    "daemon_error": (lambda _: True, "mistakes", "the daemon logged a mistake of its own"),
    "broken": (lambda _: True, "soak", "the soak could not go on as it should"),
}
"""Records that are a problem by themselves: on which condition, by which rule, and why."""


@dataclass(frozen=True)
class Problem:
    """A broken rule, and the records that show it."""

    rule: str
    text: str
    records: Sequence[Record] = ()


@dataclass
class Report:
    """The problems that were found, and how much the run covered."""

    problems: list[Problem]
    counts: Counter[str]
    figures: dict[str, float] = field(default_factory=dict)


def check(
    records: Sequence[Record], *, grace: float, allowance: float, needed: Mapping[str, int]
) -> Report:
    """Check a whole run.

    Args:
        records: of all journals, in the order of time.
        grace: seconds for which a stopping daemon lets leases continue.
        allowance: seconds by which an answer may be late without an excuse.
        needed: how often each thing must have happened for the run to verify anything.
    """
    counts = Counter(names(records))
    periods = LeasePeriods(grace)
    problems = [problem for record in records for problem in _judge(periods, record)]
    problems += _overlapping(periods.all)
    problems += _told_twice(records)
    late, figures = _late(records, allowance)
    problems += late
    problems += [p for record in records for p in _left_behind(record)]
    if not counts["leftovers"]:
        problems.append(Problem("leftovers", "leftovers were never checked"))
    problems += [
        Problem("progress", f"{name}: {counts[name]}, at least {least} are needed")
        for name, least in needed.items()
        if counts[name] < least
    ]
    return Report(problems, counts, figures)


def names(records: Sequence[Record]) -> Iterator[str]:
    """Yield the name of each record, then its name with each outcome it has."""
    for record in records:
        yield record["what"]
        for detail in ("verdict", "code", "source", "action", "by", "event"):
            if detail in record:
                yield f"{record['what']}:{record[detail]}"


def _judge(periods: LeasePeriods, record: Record) -> Iterator[Problem]:
    """Yield the problems of one record, given all records before it."""
    period = periods.current(record.get("lease", ""))
    if period is not None:
        yield from _judge_lease(period, record)
    mistaken = _MISTAKES.get(record["what"])
    if mistaken is not None and mistaken[0](record):
        yield Problem(mistaken[1], mistaken[2], [record])
    periods.read(record)


def _judge_lease(period: LeasePeriod, record: Record) -> Iterator[Problem]:
    """Yield what must not happen to the holder of a lease while the lease certainly lasts."""
    story = [*period.records, record]
    if record.get("verdict") in _BAD_VERDICTS and period.covers(record["t"]):
        yield Problem("clean", f"{period.clone} is {record['verdict']}", story)
    refused = record["what"] in _REFUSED and record["code"] == "not_your_lease"
    if refused and period.promised > record["t"]:
        yield Problem("kept", f"{record['what']}, though the lease goes on", story)


def _overlapping(periods: Sequence[LeasePeriod]) -> list[Problem]:
    return [
        Problem(
            "exclusive",
            f"{a.clone} was held by {a.who} until {a.end:.6f}, by {b.who} from {b.start:.6f}",
            [*a.records, *b.records],
        )
        for a, b in overlaps(periods)
    ]


def _told_twice(records: Sequence[Record]) -> list[Problem]:
    first: dict[str, Record] = {}
    problems = []
    for record in records:
        if record["what"] == "granted" and "token" in record:
            before = first.setdefault(record["token"], record)
            if before is not record:
                text = "one token was given to two leases"
                problems.append(Problem("tokens", text, [before, record]))
    return problems


def _late(records: Sequence[Record], allowance: float) -> tuple[list[Problem], dict[str, float]]:
    answers, unanswered = judge_answers(records)
    problems = [
        Problem(
            "deadline",
            f"{a.overshoot:.3f} s past the timeout of {a.asked['timeout']:.3f} s,"
            f" {a.late:.3f} s of them without an excuse",
            [a.asked, a.answered],
        )
        for a in answers
        if a.late > allowance
    ]
    problems += [Problem("deadline", "never answered", [asked]) for asked in unanswered]
    figures = {
        "answers": float(len(answers)),
        "overshoot": max((a.overshoot for a in answers), default=0.0),
        "late": max((a.late for a in answers), default=0.0),
        "late_50ms": float(sum(a.late > 0.05 for a in answers)),
    }
    return problems, figures


def _left_behind(record: Record) -> Iterator[Problem]:
    """Yield what is left over at rest, and what is missing then."""
    if record["what"] == "processes_left" and record["processes"]:
        yield Problem("leftovers", "processes are left", [record])
    if record["what"] != "leftovers":
        return
    for kind in ("leases", "sessions", "prepared", "strangers"):
        if record[kind]:
            yield Problem("leftovers", f"{kind}: {record[kind]}", [record])
    for template, expected in record["templates"].items():
        yield from _uneven(record, template, expected)


def _uneven(record: Record, template: str, expected: dict[str, Any]) -> Iterator[Problem]:
    """Compare what the daemon reports about a template with what is on the server."""
    there = record["databases"].get(template, {"generations": 0, "clones": 0})
    if there["generations"] != 1 or there.get("others") or there.get("references", 0) > 1:
        yield Problem(
            "leftovers", f"{template}: {there}, but there should be one generation", [record]
        )
    if there["clones"] != expected["ready"]:
        text = f"{template}: {there['clones']} clones, the daemon knows of {expected['ready']}"
        yield Problem("leftovers", text, [record])
    roles = record["roles"].get(template, 0)
    if roles != expected["ready"]:
        text = f"{template}: {roles} roles for {expected['ready']} clones"
        yield Problem("leftovers", text, [record])
