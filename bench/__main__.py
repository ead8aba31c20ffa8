"""`make bench`: measure everything in one run; JSON, Markdown and charts go to bench/results."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import (
    comparison,
    drawings,
    first_light,
    flooding,
    recycling,
    report,
    saturation,
    scaling,
    templates,
)
from bench.machine import busy_share, machine

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
WATCH_SECONDS = 1.0
"""Seconds before each part in which the load of the machine by others is measured."""
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "first_light": first_light.run,
    "saturation": saturation.run,
    "comparison": comparison.run,
    "recycling": recycling.run,
    "scaling": scaling.run,
    "templates": templates.run,
    "flooding": flooding.run,
}


def main() -> None:
    """Run all benchmarks and write what they found."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="a quick run, whose figures are not meaningful"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory for the results")
    parser.add_argument(
        "--largest",
        type=int,
        default=recycling.LARGEST_MIB,
        metavar="MIB",
        help="size of the largest template in MiB; 10000 needs 60 GB and more time",
    )
    arguments = parser.parse_args()
    results = measure(short=arguments.short, largest=arguments.largest)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(results, arguments.output)
    print(report.summary(results))


def measure(*, short: bool, largest: int) -> dict[str, Any]:
    """Measure the parts in turn, each on a daemon of its own that is removed afterwards."""
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        **PARTS,
        "recycling": partial(recycling.run, largest=largest),
    }
    results: dict[str, Any] = {"machine": machine(), "short": short}
    began, busy, figures = time.monotonic(), [], {}
    for name, run in parts.items():
        print(f"bench: {name}, {time.monotonic() - began:.0f} s after the start", flush=True)
        busy.append(busy_share(WATCH_SECONDS))
        with tempfile.TemporaryDirectory(prefix="clonepool-bench-") as scratch:
            Path(scratch).chmod(0o711)
            figures[name] = run(Path(scratch), short=short)
    took = time.monotonic() - began
    return {**results, "took_seconds": took, "busy_before": busy, "figures": figures}


def write(results: dict[str, Any], directory: Path) -> None:
    """Write the figures in full, as tables, and as charts."""
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (directory / "results.md").write_text(report.markdown(results), encoding="utf-8")
    for name, chart in drawings.draw(results["figures"]).items():
        (directory / name).write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()
