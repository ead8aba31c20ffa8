"""`make random-rewinds`: clones changed at random and rewound, each time compared in full.

The installed versions of PostgreSQL run one after another, each on as many servers as there are
processors, with an equal share of the rounds and of the time.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import queue
import random
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from support import binaries
from support.random_rewinds.lane import Failure, Lane, Outcome
from support.random_rewinds.tally import Tally
from support.random_rewinds.templates import ROUNDS as PER_TEMPLATE
from support.random_rewinds.work import work

ROUNDS, MINUTES = 10_000, 50
_LINE_SECONDS = 60.0
"""Seconds between two lines of output where there is no terminal."""
_LOOK_SECONDS = 1.0


def main() -> int:
    """Run it; return 1 if a clone differed from its template."""
    arguments = _parse()
    majors = _majors(arguments.version)
    workers = 1 if arguments.only is not None else os.cpu_count() or 1
    lanes = _lanes(arguments, majors, workers)
    wanted = sum(lane.rounds for lane in lanes)
    console = Console()
    console.print(
        f"{wanted:,} rounds, PostgreSQL {', '.join(map(str, majors))}, {workers} at a time,"
        f" at most {arguments.minutes:g} minutes; --seed {arguments.seed}", soft_wrap=True,
    )  # fmt: skip
    began, tally = time.monotonic(), Tally()
    failures, broken = _run(lanes, workers, tally, console)
    _report(console, tally, wanted, time.monotonic() - began)
    for lane, failure in failures:
        console.print(f"\n--version {lane.major} --only {failure.number} --seed {lane.seed}")
        console.print(
            f"{failure.history}\n\n{failure.message}", markup=False, highlight=False, soft_wrap=True
        )
    for lane, reason in broken:
        console.print(f"PostgreSQL {lane.major}: {reason}")
    fresh = tally.rounds >= ROUNDS // 10 and tally.on_old_clones < tally.rounds // 2
    if fresh:
        console.print("Fewer than half of the rounds were on clones that had been rewound before.")
    return 1 if failures or broken or fresh else 0


def _lanes(arguments: argparse.Namespace, majors: list[int], workers: int) -> list[Lane]:
    """Divide rounds and time: each version uses all processors at once."""
    if arguments.only is not None:
        lane = Lane(majors[0], arguments.seed, PER_TEMPLATE, math.inf, arguments.only, only=True)
        return [lane]
    rounds = math.ceil(arguments.rounds / (len(majors) * workers))
    seconds = arguments.minutes * 60 / len(majors)
    return [
        Lane(major, arguments.seed, rounds, seconds, first, workers)
        for major in majors
        for first in range(workers)
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m support.random_rewinds", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        help="number of rounds on all versions together (default %(default)s)",
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="time limit in minutes (default %(default)s)"
    )
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(2**32)))
    parser.add_argument(
        "--version", type=int, help="major version of PostgreSQL to use, instead of all"
    )
    parser.add_argument("--only", type=int, help="number of the template to use, instead of all")
    return parser.parse_args()


def _majors(only: int | None) -> list[int]:
    found = [major for major in binaries.rewinding() if only in {None, major}]
    if not found:
        sys.exit(f"there is no PostgreSQL {only or ''} with contrib here")
    return found


def _run(
    lanes: list[Lane], workers: int, tally: Tally, console: Console
) -> tuple[list[tuple[Lane, Failure]], list[tuple[Lane, str]]]:
    """Run the lanes, a few at a time; return the failures, and the lanes that broke down."""
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    waiting = list(lanes)
    at_work: dict[Lane, Any] = {}
    failures: list[tuple[Lane, Failure]] = []
    broken: list[tuple[Lane, str]] = []
    with _progress(console) as progress:
        bar = progress.add_task("rounds", total=sum(lane.rounds for lane in lanes))
        said = time.monotonic()
        while waiting or at_work:
            while waiting and len(at_work) < workers:
                lane = waiting.pop(0)
                at_work[lane] = context.Process(target=work, args=(lane, reports))
                at_work[lane].start()
            try:
                lane, result = reports.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                for lane in [lane for lane, process in at_work.items() if not process.is_alive()]:
                    broken.append((lane, f"its process ended: {at_work.pop(lane).exitcode}"))
                continue
            if isinstance(result, Outcome):
                tally.add(result)
                progress.update(bar, completed=tally.rounds)
            elif isinstance(result, Failure):
                failures.append((lane, result))
                console.print(f"PostgreSQL {lane.major}, template {result.number}: FAILED")
            else:
                at_work.pop(lane).join()
            if not console.is_terminal and time.monotonic() - said > _LINE_SECONDS:
                said = time.monotonic()
                console.print(f"{tally.rounds:,} rounds, {tally.rewound:,} rewound")
    return failures, broken


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip


def _report(console: Console, tally: Tally, wanted: int, seconds: float) -> None:
    for table in tally.tables():
        console.print(table)
    ended = "" if tally.rounds >= wanted else f" of {wanted:,}"
    console.print(
        f"{tally.rounds:,}{ended} rounds in {seconds / 60:.1f} minutes,"
        f" {seconds / max(1, tally.rounds):.2f} s each: {tally.rewound:,} clones"
        f" rewound, {tally.recreated:,} recreated; {tally.on_old_clones:,} rounds on clones that"
        " had been rewound before."
    )


if __name__ == "__main__":
    sys.exit(main())
