"""The notes beside figures in the benchmark's results."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from bench import comparison_report, report

from support.servers import ROOT

RESULTS = json.loads((ROOT / "bench" / "results" / "results.json").read_text())
SUMMARY = report.summary(RESULTS)


@pytest.mark.parametrize(
    ("figure", "aim"),
    [
        ("recycle of a lease that only read, 20 tables, ms", "≤ 1.0"),
        ("recycle after 4 changed tables of 100 rows, ms", "≤ 2.5"),
        (r"[\d,]+ ÷ 20 tables, only read", "≤ 1.5"),
        (r"[\d,]+ ÷ 20 tables, 4 changed", "≤ 1.5"),
        (r"one row in each of [\d,]+ tables changed: recycle ÷ DROP and CREATE", "≤ 1"),
        (r"template of [\d,]+ MiB, 7 of [\d,]+ rows changed: recycle, ms", "≤ 4"),
        ("1,000 rows of it changed, anywhere: recycle ÷ DROP and CREATE", "≤ 0.25"),
        ("10,000 rows of it changed, anywhere: recycle ÷ DROP and CREATE", "≤ 0.7"),
        (r"recycle, [\d,]+ MiB ÷ \d+ MiB, same change", "≤ 1.2"),
        ("CPU of server and daemon for each lease, 4 tables changed, ms", "≤ 7"),
        (r"a real schema of 4\d\d tables: 4 tables changed, recycle, ms", ""),
        (r"a real schema of 4\d\d tables: DROP and CREATE \(\w+\), ms", ""),
    ],
)
def test_every_figure_of_the_rewind_stands_beside_its_limit(figure: str, aim: str) -> None:
    assert re.search(rf"^\| {figure} \| [^|]*\d[^|]* \| {aim} \|$", SUMMARY, re.MULTILINE)


def test_the_answer_to_a_release_is_compared_with_an_acquire() -> None:
    assert re.search(
        r"^\| release answered ÷ acquire \(≤ 1.5\) \| [\d.]+ \|", SUMMARY, re.MULTILINE
    )


def compared(ways: tuple[str, ...], **versions: str) -> str:
    spread = {"count": 9, "p50": 0.0123, "p99": 0.02, "max": 0.02}
    each: dict[str, Any] = {"got": spread, "turn": spread, "per_second": [[1, 20.0], [4, 51.2]]}
    found = {
        "clients": [1, 4],
        "ways": dict.fromkeys(ways, each),
        "versions": {"pytest_postgresql": "", "integresql": "", **versions},
    }
    return comparison_report.ways({"comparison": found})


def versions(**measured: str) -> str:
    return " ".join(compared(("rewound",), **measured).split())


def test_the_comparison_has_a_row_for_each_way_that_was_measured_with_clonepool_first() -> None:
    text = compared(("rollback", "integresql", "rewound", "file_copy", "pytest_postgresql"))
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if " 51.2 |" in line]
    assert rows == [
        "**clonepool**",
        "rollback on a kept connection",
        "`CREATE DATABASE` (FILE_COPY) and `DROP`",
        "pytest-postgresql",
        "IntegreSQL",
    ]


def test_the_comparison_says_which_versions_were_measured_and_what_was_not() -> None:
    assert "DatabaseJanitor 10.0.0" in versions(pytest_postgresql="10.0.0")
    assert "IntegreSQL is v1.1.0" in versions(integresql="v1.1.0")
    assert "which was not installed, its statements were sent by psycopg" in versions()
    assert "IntegreSQL was not measured" in versions()


def test_results_without_a_comparison_still_compare_with_create_and_drop() -> None:
    old = {**RESULTS, "figures": {**RESULTS["figures"]}}
    old["figures"].pop("comparison", None)
    text = report.blocks(old)["comparison"]
    assert re.search(r"^\| \*\*clonepool\*\* \| [\d.]+ \|", text, re.MULTILINE)
    assert re.search(r"^\| `CREATE DATABASE` \(FILE_COPY\) and `DROP` \|", text, re.MULTILINE)
