"""The summary of a run, and what a run must contain to verify anything."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soak.checker import Report
    from soak.heartbeat import Heartbeat

_SHOWN_PROBLEMS, _SHOWN_RECORDS = 20, 12
_ONCE = (
    "granted:ready",
    "granted:waited",
    "checked:pristine",
    "marked:marked",
    "rechecked:mine",
    "releasing:release",
    "releasing:keep",
    "released:release",
    "stale_refused:not_your_lease",
    "reset",
    "renewed",
    "closing:no release",
    "closing:walked_away",
    "crashing:exit",
    "crashing:kill",
    "lost",
    "stale_refused:expired",
    "closing:chaos",
    "logged:lease.found",
    "logged:clone.adopted",
    "logged:database.swept",
    "logged:server.adopted",
    "chaos:kill the daemon",
    "chaos:restart the daemon",
    "chaos:freeze the daemon",
    "chaos:terminate backends",
    "chaos:crash a backend",
    "chaos:stop the postmaster",
    "chaos:kill the postmaster",
    "chaos:cut clients",
)


def needed(seconds: float) -> dict[str, int]:
    """Return how often each record must occur in a run of that length, in seconds."""
    return dict.fromkeys(_ONCE, 1) | {"granted": int(seconds), "chaos": max(1, int(seconds / 10))}


def summary(report: Report, heartbeat: Heartbeat, seconds: float) -> str:
    """Return the report as Markdown."""
    c, f = report.counts, report.figures
    refused = {k.partition(":")[2]: n for k, n in c.items() if k.startswith("refused:")}
    chaos = {k.partition(":")[2]: n for k, n in c.items() if k.startswith("chaos:")}
    found = {k.partition(":")[2]: n for k, n in c.items() if k.startswith("logged:")}
    unseen = c["checked:unchecked"] + c["checked:missing"]
    unseen_later = c["rechecked:unchecked"] + c["rechecked:missing"]
    late, longest = f["late"] * 1000, heartbeat.longest * 1000
    lines = [
        f"## Soak of {seconds:.0f} s",
        f"- processes: {c['client_started']} clients, {c['daemon_up']} daemons",
        f"- leases: {c['granted']}, {c['granted:ready']} of them from inventory",
        f"- resets: {c['reset']}, renewals: {c['renewed']}",
        f"- released: {c['released']}, ended by closing: {c['closing:no release']}",
        f"- clients crashed: {c['crashing']}, cut: {c['closing:chaos']}, calls lost: {c['lost']}",
        f"- clean when granted: {c['checked:pristine']}, could not be checked: {unseen}",
        f"- unchanged later: {c['rechecked:mine']}, could not be checked: {unseen_later}",
        f"- acquires refused: {_listed(refused)}",
        f"- stale tokens refused: {c['stale_refused']}",
        f"- chaos: {_listed(chaos)}",
        f"- found by restarted daemons: {_listed(found)}",
        f"- answers: {f['answers']:.0f}, at most {f['overshoot'] * 1000:.0f} ms past the timeout",
        f"- without an outage: {late:.0f} ms at most, {f['late_50ms']:.0f} above 50 ms",
        f"- longest stall of the machine: {longest:.0f} ms",
        f"- time that the daemon waited for a processor: {heartbeat.delayed:.1f} s",
    ]
    if report.problems:
        lines.append(f"- **{len(report.problems)} problems**")
    else:
        lines.append("- no clone leased twice, none dirty, no answer late, nothing left behind")
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        lines.append(f"\n### {problem.rule}: {problem.text}")
        lines += [f"    {json.dumps(record)[:600]}" for record in problem.records[-_SHOWN_RECORDS:]]
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "none"
