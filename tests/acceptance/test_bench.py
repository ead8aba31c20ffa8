"""The benchmark runs and finds every figure; how good they are is for `make bench` to say."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAY_BE_ZERO = {
    "daemon_idle_cpu_share",  # the idle daemon does nothing
    "daemon_cpu",  # nor where databases are made by hand
    "server_cpu", "client_cpu",  # the kernel counts hundredths of a second
    "backend_cpu",  # and nothing of a single process where it was built without schedstat
    "rewound_share",
    "overhead_seconds", "overhead_beyond_a_tenth",  # it may take less than psql alone
    "tables", "curve", "busy_before",
    "connections",  # that flood the daemon: none at first
}  # fmt: skip


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in the results, and the key under which it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


@pytest.mark.timeout(300)
def test_a_short_benchmark_writes_every_figure(place: Path) -> None:
    command = [sys.executable, "-m", "bench", "--short", "--output", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results = json.loads((place / "results.json").read_text())
    assert results["short"]
    assert results["figures"].keys() == {
        "first_light", "saturation", "comparison", "flooding", "recycling", "scaling", "templates",
    }  # fmt: skip
    for name, number in numbers(results):
        assert math.isfinite(number), name
        assert number > 0 or name in MAY_BE_ZERO, name
    text = (place / "results.md").read_text()
    assert "| acquire of a ready clone" in text
    assert re.search(r"^\| a real schema of 4\d\d tables: only read", text, re.MULTILINE)
    for way in (r"\*\*clonepool\*\*", "rollback on a kept connection", "pytest-postgresql"):
        assert re.search(rf"^\| {way} \| [\d.]+ \|", text, re.MULTILINE), way
    assert "nan" not in text
    charts = {chart.stem for chart in place.glob("*.svg")}
    assert charts >= {"acquire", "recycle", "recycle_by_template", "leases_by_clients"}
