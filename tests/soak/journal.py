"""Append-only journals: one per process, one JSON object per line, on one clock.

Every record has `t` (CLOCK_MONOTONIC), `who` and `what`. The start of an action is written before
it (`asked`, `releasing`, `closing`), the outcome after it (`granted`, `released`). So whatever the
delays, a client really has its clone between `granted` and `releasing`.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Record = dict[str, Any]


def clock() -> float:
    """Return seconds on a clock that all processes of the machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Journal:
    """The journal of one process; each record is one write, so SIGKILL leaves whole lines."""

    def __init__(self, path: Path, who: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._who = who

    def write(self, what: str, **facts: object) -> float:
        """Append a record and return its time."""
        now = clock()
        record = {"t": round(now, 6), "who": self._who, "what": what, **facts}
        os.write(self._file, json.dumps(record, default=str).encode() + b"\n")
        return now


def read_all(directory: Path) -> list[Record]:
    """Return every record of every journal, in the order of time."""
    records: list[Record] = []
    for path in sorted(directory.glob("*.jsonl")):
        records += [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(records, key=lambda record: float(record["t"]))
