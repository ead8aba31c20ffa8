"""`make bench`: measure in one run, print a table, write JSON and Markdown to bench/results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import first_light
from clonepool.postgres.embedded.settings import machine_memory_bytes

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="a quick run whose figures mean little"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clonepool-bench-") as scratch:
        Path(scratch).chmod(0o711)
        figures = first_light.run(Path(scratch), short=arguments.short)
    report = {"machine": machine(), "short": arguments.short, "figures": figures}
    table = markdown(report)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "first_light.json").write_text(json.dumps(report, indent=2) + "\n")
    (arguments.output / "first_light.md").write_text(table)
    print(table)


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(machine_memory_bytes() / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the figures as a table, each beside what it must be."""
    f, m = report["figures"], report["machine"]
    micro, milli, mib = 1e6, 1e3, 2**20

    def spread(name: str, scale: float) -> str:
        return f"{f[name]['p50'] * scale:.3g} | {f[name]['p99'] * scale:.3g}"

    def ratio(figure: dict[str, float]) -> str:
        return f"{figure['p50']:.2f} | {figure['p99']:.2f}"

    over_floor, over_warm = f["acquire_over_python_floor"], f["first_row_over_warm"]
    resident = f["daemon_resident_bytes_with_100_clones"] / mib
    slowest = f["clone_made"]["max"] * milli
    rows = [
        "| figure | p50 | p99 | must be |",
        "|---|---|---|---|",
        f"| acquire of a ready clone, µs | {spread('acquire', micro)} | |",
        f"| smallest Python server, same client, µs | {spread('python_floor', micro)} | |",
        f"| echo server in C, same client, µs | {spread('c_echo', micro)} | |",
        f"| acquire ÷ smallest Python server | {ratio(over_floor)} | p50 ≤ 1.5, p99 ≤ 4 |",
        f"| acquire, connect, one query, ms | {spread('first_row', milli)} | |",
        f"| connect to a warm database, one query, ms | {spread('warm_connect_row', milli)} | |",
        f"| first row ÷ warm | {ratio(over_warm)} | p50 ≤ 1.4 |",
        f"| clone of examples/blog made, ms | {spread('clone_made', milli)} | p50 < 200 |",
        f"| the slowest of them, ms | | {slowest:.3g} | < 500 |",
        f"| daemon resident with 100 clones, MiB | {resident:.0f} | | < 80 |",
        f"| CPU of the idle daemon, share of a core | {f['daemon_idle_cpu_share']:.2%} | | none |",
    ]
    where = (
        f"{m['date']}, {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Linux {m['kernel']},"
        f" Python {m['python']}, embedded PostgreSQL; one run, all on one daemon and server. For"
        " the acquires the client had one core, and the three servers the other."
    )
    return "\n".join([*rows, "", where, ""])


if __name__ == "__main__":
    main()
