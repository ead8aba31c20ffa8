"""The results as Markdown: what the README shows, and all the rest.

Each figure stands beside what it must be. What was recreated where it should have been rewound is
called so.
"""

from __future__ import annotations

import textwrap
from typing import Any

from bench.drawings import NAMES
from bench.work import TABLES

MICRO, MILLI, MIB = 1e6, 1e3, 2**20
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"
"""What stands between these in results.md stands in the README too."""


def markdown(report: dict[str, Any]) -> str:
    """Return the whole of results.md."""
    figures = report["figures"]
    parts = [
        "# Results",
        f"{BEGIN}\n{summary(report)}\n{END}",
        "## Databases a second",
        _ways(figures["saturation"]),
        _by_clients(figures["saturation"]),
        "## Recycles by what was changed",
        _by_change(figures["recycling"]),
        "## Recycles by how many tables the template has",
        _by_count(figures["recycling"]),
        "## The same change in larger templates",
        _by_size(figures["recycling"]),
        "## What a recycle is made of",
        _parts(figures["recycling"]["parts"]),
        "## Acquires by how many there are",
        _scaling(figures["scaling"]),
    ]
    return "\n\n".join(parts) + "\n"


def summary(report: dict[str, Any]) -> str:
    """Return the figures that the README shows, and where they come from."""
    figures = report["figures"]
    goals = [
        *_throughput(figures["saturation"]),
        *_recycles(figures["recycling"]),
        *_growth(figures["recycling"], figures["scaling"]),
        *_templates(figures["templates"]),
        *_floods(figures["flooding"]),
    ]
    return "\n\n".join(
        [
            _table(["figure", "measured", "aim"], goals),
            _table(["", "p50", "p99"], _first_light(figures["first_light"])),
            _origin(report),
        ]
    )


def _throughput(found: dict[str, Any]) -> list[list[str]]:
    ways, plain, clients = found["ways"], found["faster_plain"], found["clients"]
    return [
        [f"leases a second, {clients} clients that never pause", _rate(ways["rewound"]), ""],
        ["the same, connecting for each rewind", _rate(ways["connecting"]), ""],
        [f"the same by {NAMES[plain]}", _rate(ways[plain]), ""],
        ["leases ÷ that", _ratio(found, "rewound"), "≥ 2.5"],
        ["connecting for each rewind ÷ that", _ratio(found, "connecting"), ""],
        [
            "CPU of server and daemon for each lease, 4 tables changed, ms",
            _cpu(ways["rewound"]),
            "≤ 7",
        ],
        [
            "of that daemon; server, the client's own connection within it, ms",
            _split(ways["rewound"]),
            "",
        ],
        ["the same, connecting for each rewind, ms", _cpu(ways["connecting"]), ""],
        [f"CPU of the server for each {NAMES[plain]}, ms", _cpu(ways[plain]), ""],
    ]


def _ratio(found: dict[str, Any], way: str) -> str:
    """Return the median over the rounds, and how far they lie apart."""
    each = found["ratios"][way]
    return f"{found['ratio'][way]:.2f} ({min(each):.2f} to {max(each):.2f})"


def _recycles(found: dict[str, Any]) -> list[list[str]]:
    by_tables = {each["tables"]: each for each in found["by_tables"]}
    large = _large(found)
    parts = found["parts"]["read_only"]
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
        note = _how(most[key]) or _how(base[key])
        name = f"{most['tables']:,} ÷ {TABLES} tables, {what}"
        rows.append([name, f"{growth:.2f}{note}", "≤ 1.5"])
    every = most["every_table"]
    name = f"one row in each of {most['tables']:,} tables changed: recycle ÷ DROP and CREATE"
    return [*rows, [name, _over_plain(every, most), "≤ 1"]]


def _rows(found: dict[str, Any], large: dict[str, Any]) -> list[list[str]]:
    """Return what many changed rows cost, where the table has so many."""
    aims = {1000: "≤ 0.25", 10_000: "≤ 0.7"}
    return [
        [f"{each['rows']:,} rows of it changed, anywhere: recycle ÷ DROP and CREATE",
         _over_plain(each, large), aims[each["rows"]]]
        for each in found["by_rows"]
        if each["rows"] in aims
    ]  # fmt: skip


def _real(found: dict[str, Any]) -> list[list[str]]:
    name = f"a real schema of {found['tables']} tables"
    return [
        [f"{name}: only read, recycle, ms", _recycle(found["read_only"]), ""],
        [f"{name}: 4 tables changed, recycle, ms", _recycle(found["four_tables"]), ""],
        [f"{name}: DROP and CREATE ({found['faster_plain'].upper()}), ms", _plain(found), ""],
    ]


def _growth(recycling: dict[str, Any], scaling: dict[str, Any]) -> list[list[str]]:
    sizes = recycling["by_size"]
    small, large = sizes[0], sizes[-1]
    growth = large["recycle"]["p50"] / small["recycle"]["p50"]
    span = f"recycle, {large['bytes'] / MIB:,.0f} MiB ÷ {small['bytes'] / MIB:.0f} MiB"
    note = _how(large) or _how(small)
    return [
        [f"{span}, same change", f"{growth:.2f}{note}", "≤ 1.2"],
        *(
            [f"acquire, {_span(scaling[key])} {what}, p50; p99", _grown(scaling[key]), "≤ 1.3; ≤ 3"]
            for key, what in (("ready", "clones ready"), ("clients", "clients connected"))
        ),
    ]


def _floods(found: dict[str, Any]) -> list[list[str]]:
    alone, *crowds = found["crowds"]
    return [
        ["a ping, nobody else there, p99, ms", _milli(alone["p99"]), ""],
        *(
            [
                f"beside {each['connections']} connections that flood the daemon, p99, ms",
                _milli(each["p99"]),
                "≤ 20" if each is crowds[-1] else "",
            ]
            for each in crowds
        ),
    ]


def _templates(found: dict[str, Any]) -> list[list[str]]:
    look, build = found["look"], found["build"]
    files = f"{look['files']:,} unchanged files"
    beyond = build["overhead_beyond_a_tenth"]
    return [
        [
            "start to first lease, nothing changed, s",
            _digits(found["start_to_lease"]["p50"]),
            "< 1",
        ],
        [f"a look at {files} at a start, ms", _milli(look["again"]["p50"]), "< 100"],
        ["the same for the first time, ms", _milli(look["first"]["p50"]), ""],
        [
            f"an edit noticed, template of {found['files']} files, ms",
            _milli(found["edit_noticed"]["p50"]),
            "< 200",
        ],
        [
            f"build beyond {build['files']} files by psql alone, ms",
            _milli(build["overhead_seconds"]),
            f"< a tenth + 200: {_milli(build['overhead_seconds'] - beyond + 0.2)}",
        ],
    ]


def _first_light(f: dict[str, Any]) -> list[list[str]]:
    resident = f["daemon_resident_bytes_with_100_clones"] / MIB
    return [
        ["acquire of a ready clone, µs", *_spread(f["acquire"], MICRO)],
        [
            "smallest server in Python (uvloop, constant answer), same client, µs",
            *_spread(f["python_floor"], MICRO),
        ],
        ["echo server in C, same client, µs", *_spread(f["c_echo"], MICRO)],
        ["acquire ÷ smallest Python server (≤ 1.5; ≤ 4)", *_both(f["acquire_over_python_floor"])],
        ["a release answered, µs", *_spread(f["release"], MICRO)],
        ["release answered ÷ acquire (≤ 1.5)", *_both(f["release_over_acquire"])],
        ["acquire, connect, one query, ms", *_spread(f["first_row"], MILLI)],
        [
            "connect to a database that was already warm, one query, ms",
            *_spread(f["warm_connect_row"], MILLI),
        ],
        ["first row ÷ warm (≤ 1.4)", *_both(f["first_row_over_warm"])],
        [
            "a clone of `examples/blog` made, verified and warmed, ms (< 200)",
            *_spread(f["clone_made"], MILLI),
        ],
        ["daemon resident with 100 clones, MiB (< 80)", f"{resident:.0f}", ""],
        ["CPU of the idle daemon, share of a core", f"{f['daemon_idle_cpu_share']:.2%}", ""],
    ]


def _origin(report: dict[str, Any]) -> str:
    m, figures = report["machine"], report["figures"]
    short = " in its short form, whose figures mean little," if report["short"] else ""
    skipped = figures["recycling"]["skipped_mib"]
    left_out = f" There was no room for templates of {skipped} MiB." if skipped else ""
    text = (
        f"One run of `make bench`{short} on {m['date']}, {report['took_seconds'] / 60:.1f} minutes:"
        f" {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Linux {m['kernel']}, Python"
        f" {m['python']}, PostgreSQL {figures['first_light']['postgresql']} embedded, its data"
        f" {'in memory' if figures['recycling']['storage'] == 'memory' else 'on disk'}."
        f" Before its parts {max(report['busy_before']):.0%} of the processors were busy with other"
        f" things at most.{left_out}"
    )
    return textwrap.fill(text, 100)


def _ways(found: dict[str, Any]) -> str:
    head = [
        "way",
        "a second",
        "wait for a database, ms: p50",
        "p99",
        "give it back, ms: p50",
        "p99",
    ]
    head += ["CPU a turn, ms: server", "the client's connection in it", "daemon", "client"]
    return _table(
        [f"{found['clients']} clients", *head[1:]],
        [
            [
                NAMES[way],
                _rate(each),
                *_spread(each["got"], MILLI),
                *_spread(each["gave"], MILLI),
                *(_milli(each[f"{who}_cpu"]) for who in ("server", "backend", "daemon", "client")),
            ]
            for way, each in found["ways"].items()
        ],
    )


def _by_clients(found: dict[str, Any]) -> str:
    lines = found["per_second_by_clients"]
    counts = [str(clients) for clients, _ in lines["rewound"]]
    return _table(
        ["a second, by clients", *counts],
        [[NAMES[way], *(f"{rate:.0f}" for _, rate in points)] for way, points in lines.items()],
    )


def _by_change(found: dict[str, Any]) -> str:
    where = f"of {found['by_rows_mib']} MiB"
    lines = [(f"tables of 100 rows: {each['tables']}", each) for each in found["by_tables"]]
    lines += [(f"rows, template {where}: {each['rows']:,}", each) for each in found["by_rows"]]
    return _table(
        ["changed", "recycle, ms: p50", "p99", "release answered, ms: p50", "p99", "rewound"],
        [
            [
                name,
                *_spread(each["recycle"], MILLI),
                *_spread(each["release"], MILLI),
                f"{each['rewound_share']:.0%}",
            ]
            for name, each in lines
        ],
    )


def _by_count(found: dict[str, Any]) -> str:
    names = {
        "read_only": "nothing", "four_tables": "4 tables", "every_table": "one row in every table",
    }  # fmt: skip
    templates = [(f"{each['tables']:,} of 100 rows", each) for each in found["by_count"]]
    templates.append((f"{found['real']['tables']}, a real schema", found["real"]))
    return _table(
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
                *_spread(each[key]["recycle"], MILLI),
                f"{each[key]['rewound_share']:.0%}",
                each["faster_plain"].upper(),
                _plain(each),
            ]
            for name, each in templates
            for key, what in names.items()
            if key in each
        ],
    )


def _by_size(found: dict[str, Any]) -> str:
    return _table(
        ["MiB", "rows", "recycle, ms: p50", "p99", "rewound", "DROP and CREATE, ms: by", "p50"],
        [
            [
                f"{each['bytes'] / MIB:,.0f}",
                f"{each['rows']:,}",
                *_spread(each["recycle"], MILLI),
                f"{each['rewound_share']:.0%}",
                each["faster_plain"].upper(),
                _plain(each),
            ]
            for each in found["by_size"]
        ],
    )


def _parts(found: dict[str, Any]) -> str:
    names = {
        "whole": "all of it",
        "end_sessions": "see that nobody is connected",
        "connect": "connect",
        "rest": "look, undo, look again",
    }
    head = ["in one process, beside an idle daemon; ms", "only read: p50", "p99"]
    return _table(
        [*head, "4 tables changed: p50", "p99"],
        [
            [
                name,
                *_spread(found["read_only"][part], MILLI),
                *_spread(found["four_tables"][part], MILLI),
            ]
            for part, name in names.items()
        ],
    )


def _scaling(found: dict[str, Any]) -> str:
    names = {
        "ready": "clones ready",
        "clients": "clients connected, one of them asks",
        "clients_in_turn": "clients connected, all ask in turn",
    }
    return _table(
        ["", "how many", "p50, µs", "p99, µs"],
        [
            [name, f"{each['size']:,}", *_spread(each, MICRO)]
            for key, name in names.items()
            for each in found[key]["sizes"]
        ],
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _large(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured on the template of 200 MiB, or on the largest below it."""
    (large,) = (each for each in found["by_size"] if each["mib"] == found["by_rows_mib"])
    return dict(large)


def _plain(about: dict[str, Any]) -> str:
    """Return the milliseconds of DROP and CREATE by the faster strategy."""
    return _milli(_plain_seconds(about))


def _plain_seconds(about: dict[str, Any]) -> float:
    return float(about["drop_and_create"][about["faster_plain"]]["p50"])


def _over_plain(each: dict[str, Any], about: dict[str, Any]) -> str:
    """Return how many times a replacement by hand the recycle took."""
    return f"{each['recycle']['p50'] / _plain_seconds(about):.2f}{_how(each)}"


def _recycle(each: dict[str, Any]) -> str:
    return f"{_milli(each['recycle']['p50'])}{_how(each)}"


def _how(each: dict[str, Any]) -> str:
    return "" if each["rewound_share"] > 0.5 else " (recreated)"


def _rate(way: dict[str, Any]) -> str:
    return f"{way['per_second']:.0f}"


def _cpu(way: dict[str, Any]) -> str:
    return _milli(way["server_cpu"] + way["daemon_cpu"])


def _split(way: dict[str, Any]) -> str:
    return "; ".join(_milli(way[f"{who}_cpu"]) for who in ("daemon", "server", "backend"))


def _milli(seconds: float) -> str:
    return _digits(seconds * MILLI)


def _spread(found: dict[str, Any], scale: float) -> tuple[str, str]:
    return _digits(found["p50"] * scale), _digits(found["p99"] * scale)


def _digits(value: float) -> str:
    """Return three digits that count, and no power of ten."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _both(found: dict[str, float]) -> tuple[str, str]:
    return f"{found['p50']:.2f}", f"{found['p99']:.2f}"


def _span(found: dict[str, Any]) -> str:
    return f"{found['sizes'][-1]['size']:,} ÷ {found['sizes'][0]['size']}"


def _grown(found: dict[str, Any]) -> str:
    return f"{found['growth']['p50']:.2f}; {found['growth']['p99']:.2f}"
