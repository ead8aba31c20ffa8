"""Describes the machine on which the figures were measured."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clonepool.postgres.embedded.settings import machine_memory_bytes


def machine() -> dict[str, Any]:
    """Return the facts, and the day."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(machine_memory_bytes() / 2**30),
        "kernel": ".".join(platform.release().split("-")[0].split(".")[:2]),
        "python": platform.python_version(),
    }


def busy_share(seconds: float) -> float:
    """Watch for so long how much of all processors is in use: by others, while we do nothing."""
    idle, whole = _processor_times()
    time.sleep(seconds)
    idle_later, whole_later = _processor_times()
    return 1 - (idle_later - idle) / (whole_later - whole)


def _processor_times() -> tuple[int, int]:
    """Return what all processors idled and what they had, in the kernel's ticks."""
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, idle, waiting, *others = map(int, first.split()[1:9])
    return idle + waiting, sum((user, nice, system, idle, waiting, *others))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
