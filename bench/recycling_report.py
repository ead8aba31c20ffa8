"""The results about recycles, by what was changed and by the template."""

from __future__ import annotations

from typing import Any

from bench.formats import MIB, MILLI, milli, spread, table
from bench.work import TABLES


def recycles(found: dict[str, Any]) -> list[list[str]]:
    """Return the rows that the README shows, each with what it must be."""
    by_tables = {each["tables"]: each for each in found["by_tables"]}
    large = _large(found)
    parts = found["parts"]["four_tables"]
    share = parts["connect"]["p50"] / parts["whole"]["p50"]
    name = f"template of {large['bytes'] / MIB:.0f} MiB, 7 of {large['rows']:,} rows changed"
    return [
        ["recycle of a lease that only read, 20 tables, ms", _recycle(by_tables[0]), "≤ 1.0"],
        ["connecting, of a rewind that has to", f"{share:.0%}", ""],
        ["recycle after 4 changed tables of 100 rows, ms", _recycle(by_tables[4]), "≤ 2.5"],
        ["DROP and CREATE of that template, ms", _plain(found["small"]), ""],
        *_tables(found),
        [f"{name}: recycle, ms", _recycle(large), "≤ 4"],
        [f"DROP and CREATE of it ({large['faster_plain'].upper()}), ms", _plain(large), ""],
        *_rows(found, large),
        *_real(found["real"]),
    ]


def _tables(found: dict[str, Any]) -> list[list[str]]:
    """Return what it costs that a template has more tables, none of them changed."""
    by_tables = {each["tables"]: each for each in found["by_tables"]}
    base = {"read_only": by_tables[0], "four_tables": by_tables[4]}
    most = found["by_count"][-1]
    rows = [
        [f"{each['tables']:,} tables: only read; 4 changed; DROP and CREATE, ms",
         "; ".join([_recycle(each["read_only"]), _recycle(each["four_tables"]), _plain(each)]), ""]
        for each in found["by_count"]
    ]  # fmt: skip
    for key, what in (("read_only", "only read"), ("four_tables", "4 changed")):
        growth = most[key]["recycle"]["p50"] / base[key]["recycle"]["p50"]
        note = how(most[key]) or how(base[key])
        name = f"{most['tables']:,} ÷ {TABLES} tables, {what}"
        rows.append([name, f"{growth:.2f}{note}", "≤ 1.5"])
    every = most["every_table"]
    name = f"one row in each of {most['tables']:,} tables changed: recycle ÷ DROP and CREATE"
    return [*rows, [name, _over_plain(every, most), "≤ 1"]]


def _rows(found: dict[str, Any], large: dict[str, Any]) -> list[list[str]]:
    """Return the cost of many changed rows, by the number of rows of the table."""
    aims = {1000: "≤ 0.25", 10_000: "≤ 0.7"}
    return [
        [f"{each['rows']:,} rows of it changed, {where}: recycle ÷ DROP and CREATE",
         _over_plain(each, large), aims[each["rows"]]]
        for where, key in (("one after the other", "rows_together"), ("anywhere", "by_rows"))
        for each in found[key]
        if each["rows"] in aims
    ]  # fmt: skip


def _real(found: dict[str, Any]) -> list[list[str]]:
    name = f"a real schema of {found['tables']} tables"
    return [
        [f"{name}: only read, recycle, ms", _recycle(found["read_only"]), ""],
        [f"{name}: 4 tables changed, recycle, ms", _recycle(found["four_tables"]), ""],
        [f"{name}: DROP and CREATE ({found['faster_plain'].upper()}), ms", _plain(found), ""],
    ]


def by_change(found: dict[str, Any]) -> str:
    """Return what recycles cost by what was changed."""
    where = f"of {found['by_rows_mib']} MiB"
    lines = [(f"tables of 100 rows: {each['tables']}", each) for each in found["by_tables"]]
    lines += [(f"rows, template {where}: {each['rows']:,}", each) for each in found["by_rows"]]
    return table(
        ["changed", "recycle, ms: p50", "p99", "release answered, ms: p50", "p99", "rewound"],
        [
            [
                name,
                *spread(each["recycle"], MILLI),
                *spread(each["release"], MILLI),
                f"{each['rewound_share']:.0%}",
            ]
            for name, each in lines
        ],
    )


def by_count(found: dict[str, Any]) -> str:
    """Return what recycles cost by how many tables the template has."""
    names = {
        "read_only": "nothing", "four_tables": "4 tables", "every_table": "one row in every table",
    }  # fmt: skip
    templates = [(f"{each['tables']:,} of 100 rows", each) for each in found["by_count"]]
    templates.append((f"{found['real']['tables']}, a real schema", found["real"]))
    return table(
        [
            "tables",
            "changed",
            "recycle, ms: p50",
            "p99",
            "rewound",
            "DROP and CREATE, ms: by",
            "p50",
        ],
        [
            [
                name,
                what,
                *spread(each[key]["recycle"], MILLI),
                f"{each[key]['rewound_share']:.0%}",
                each["faster_plain"].upper(),
                _plain(each),
            ]
            for name, each in templates
            for key, what in names.items()
            if key in each
        ],
    )


def by_size(found: dict[str, Any]) -> str:
    """Return what the same change costs in larger templates."""
    return table(
        ["MiB", "rows", "recycle, ms: p50", "p99", "rewound", "DROP and CREATE, ms: by", "p50"],
        [
            [
                f"{each['bytes'] / MIB:,.0f}",
                f"{each['rows']:,}",
                *spread(each["recycle"], MILLI),
                f"{each['rewound_share']:.0%}",
                each["faster_plain"].upper(),
                _plain(each),
            ]
            for each in found["by_size"]
        ],
    )


def parts(found: dict[str, Any]) -> str:
    """Return the parts of a recycle as a table."""
    names = {
        "whole": "all of it",
        "end_sessions": "see that nobody is connected",
        "connect": "connect",
        "rest": "look, undo",
    }

    def cells(lease: str, part: str) -> list[str]:
        found_of = found[lease]
        return [*spread(found_of[part], MILLI)] if part in found_of else ["0", "0"]

    head = ["in one process, beside an idle daemon; ms", "only read: p50", "p99"]
    return table(
        [*head, "4 tables changed: p50", "p99"],
        [
            [name, *cells("read_only", part), *cells("four_tables", part)]
            for part, name in names.items()
        ],
    )


def _large(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured on the template of 200 MiB, or on the largest below it."""
    (large,) = (each for each in found["by_size"] if each["mib"] == found["by_rows_mib"])
    return dict(large)


def _plain(about: dict[str, Any]) -> str:
    """Return the milliseconds of DROP and CREATE by the faster strategy."""
    return milli(_plain_seconds(about))


def _plain_seconds(about: dict[str, Any]) -> float:
    return float(about["drop_and_create"][about["faster_plain"]]["p50"])


def _over_plain(each: dict[str, Any], about: dict[str, Any]) -> str:
    """Return how many times a replacement by hand the recycle took."""
    return f"{each['recycle']['p50'] / _plain_seconds(about):.2f}{how(each)}"


def _recycle(each: dict[str, Any]) -> str:
    return f"{milli(each['recycle']['p50'])}{how(each)}"


def how(each: dict[str, Any]) -> str:
    """Say so if it was recreated where it should have been rewound."""
    return "" if each["rewound_share"] > 0.5 else " (recreated)"
