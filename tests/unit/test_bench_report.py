"""What the results say beside each figure."""

from __future__ import annotations

import json
import re

import pytest
from bench import report

from support.servers import ROOT

SUMMARY = report.summary(json.loads((ROOT / "bench" / "results" / "results.json").read_text()))


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
