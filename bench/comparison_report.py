"""The table that compares clonepool with other ways; README shows it.

Older results have no comparison: the table is then made from the leases per second, which were
measured together with plain CREATE and DROP.
"""

from __future__ import annotations

import textwrap
from typing import Any

from bench.formats import MILLI, digits, milli, spread, table

_LIMITS = {
    "rewound": "own database; a test may do anything",
    "rollback": "one transaction of one connection: no COMMIT, no second connection or process",
    "wal_log": "own database, which the test itself has to drop",
    "file_copy": "own database, which the test itself has to drop",
    "pytest_postgresql": "own database, dropped by the fixture; pytest alone",
    "integresql": "own database; not returned when the test crashes",
}
"""What a test has, and what it may not do."""
_NAMES = {
    "rewound": "**clonepool**",
    "rollback": "rollback on a kept connection",
    "wal_log": "`CREATE DATABASE` (WAL_LOG) and `DROP`",
    "file_copy": "`CREATE DATABASE` (FILE_COPY) and `DROP`",
    "pytest_postgresql": "pytest-postgresql",
    "integresql": "IntegreSQL",
}
_ORDER = tuple(_NAMES)


def ways(figures: dict[str, Any]) -> str:
    """Return the table of all ways that were measured, and what was not measured as it should."""
    if "comparison" not in figures:
        return _of_saturation(figures["saturation"])
    found = figures["comparison"]
    one, several = found["clients"]
    head = ["", "wait for a database, ms", "a whole test, ms", f"tests a second, {one} client"]
    head += [f"{several} clients", "what a test gets"]
    rows = [
        [
            _NAMES[way],
            milli(each["got"]["p50"]),
            milli(each["turn"]["p50"]),
            *(digits(rate) for _, rate in each["per_second"]),
            _LIMITS[way],
        ]
        for way, each in sorted(found["ways"].items(), key=lambda pair: _ORDER.index(pair[0]))
    ]
    return f"{table(head, rows)}\n\n{_versions(found['versions'])}"


def _of_saturation(found: dict[str, Any]) -> str:
    head = [
        "",
        "wait for a database, ms: p50",
        "p99",
        f"tests a second, {found['clients']} clients",
    ]
    rows = [
        [
            _NAMES[way],
            *spread(found["ways"][way]["got"], MILLI),
            digits(found["ways"][way]["per_second"]),
            _LIMITS[way],
        ]
        for way in ("rewound", "wal_log", "file_copy")
    ]
    return table([*head, "what a test gets"], rows)


def _versions(versions: dict[str, str]) -> str:
    """Return which versions were measured, and what stands in for those that were not."""
    janitor, integresql = versions["pytest_postgresql"], versions["integresql"]
    sentences = [
        "Medians; each test connects, changes four tables and disconnects, except under rollback.",
        f"pytest-postgresql is its DatabaseJanitor {janitor}."
        if janitor
        else "For pytest-postgresql, which was not installed, its statements were sent by psycopg.",
        f"IntegreSQL is {integresql} with a pool as large as clonepool's."
        if integresql
        else "IntegreSQL was not measured: it drops and copies a database in the background for"
        " each test that writes, so its waits are short and its rate is that of CREATE and DROP.",
    ]
    return textwrap.fill(" ".join(sentences), 100, break_on_hyphens=False)
