"""The results as Markdown: `results.md`, and the blocks of it that README and docs show.

Each figure is shown with its aim. A clone that was recreated instead of rewound is marked.
"""

from __future__ import annotations

import textwrap
from typing import Any

from bench import comparison_report, recycling_report
from bench.drawings import NAMES
from bench.formats import MIB, MICRO, MILLI, block, digits, milli, spread, table
from bench.work import CHANGED, ROWS, TABLES


def markdown(report: dict[str, Any]) -> str:
    """Return the whole of results.md."""
    figures = report["figures"]
    parts = [
        "# Results",
        "Written by `make bench`; `make docs` copies the marked blocks into README and docs.",
        *(block(name, text) for name, text in blocks(report).items()),
        "## Databases a second",
        _ways(figures["saturation"]),
        _by_clients(figures["saturation"]),
        "## Recycles by what was changed",
        recycling_report.by_change(figures["recycling"]),
        "## Recycles by how many tables the template has",
        recycling_report.by_count(figures["recycling"]),
        "## The same change in larger templates",
        recycling_report.by_size(figures["recycling"]),
        "## What a recycle is made of",
        recycling_report.parts(figures["recycling"]["parts"]),
        "## Acquires by how many there are",
        _scaling(figures["scaling"]),
    ]
    return "\n\n".join(parts) + "\n"


def blocks(report: dict[str, Any]) -> dict[str, str]:
    """Return the parts that README and docs show, by name."""
    acquire = report["figures"]["first_light"]["acquire"]["p50"]
    return {
        "acquire": f"{milli(float(f'{acquire:.2g}'))} ms",
        "comparison": f"{comparison_report.ways(report['figures'])}\n\n{machine(report)}",
        "summary": summary(report),
    }


def summary(report: dict[str, Any]) -> str:
    """Return the table of all figures and their aims, and what they were measured on."""
    figures = report["figures"]
    goals = [
        *_throughput(figures["saturation"]),
        *recycling_report.recycles(figures["recycling"]),
        *_growth(figures["recycling"], figures["scaling"]),
        *_templates(figures["templates"]),
        *_floods(figures["flooding"]),
    ]
    return "\n\n".join(
        [
            table(["figure", "measured", "aim"], goals),
            table(["", "p50", "p99"], _first_light(figures["first_light"])),
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
            "of that the daemon; the server; the client's own connection, part of the server, ms",
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


def _growth(recycling: dict[str, Any], scaling: dict[str, Any]) -> list[list[str]]:
    sizes = recycling["by_size"]
    small, large = sizes[0], sizes[-1]
    growth = large["recycle"]["p50"] / small["recycle"]["p50"]
    span = f"recycle, {large['bytes'] / MIB:,.0f} MiB ÷ {small['bytes'] / MIB:.0f} MiB"
    note = recycling_report.how(large) or recycling_report.how(small)
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
        ["a ping, nobody else there, p99, ms", milli(alone["p99"]), ""],
        *(
            [
                f"beside {each['connections']} connections that flood the daemon, p99, ms",
                milli(each["p99"]),
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
            digits(found["start_to_lease"]["p50"]),
            "< 1",
        ],
        [f"a look at {files} at a start, ms", milli(look["again"]["p50"]), "< 100"],
        ["the same for the first time, ms", milli(look["first"]["p50"]), ""],
        [
            f"an edit noticed, template of {found['files']} files, ms",
            milli(found["edit_noticed"]["p50"]),
            "< 200",
        ],
        [
            f"build beyond {build['files']} files by psql alone, ms",
            milli(build["overhead_seconds"]),
            f"< a tenth + 200: {milli(build['overhead_seconds'] - beyond + 0.2)}",
        ],
    ]


def _first_light(f: dict[str, Any]) -> list[list[str]]:
    resident = f["daemon_resident_bytes_with_100_clones"] / MIB
    return [
        ["acquire of a ready clone, µs", *spread(f["acquire"], MICRO)],
        [
            "smallest server in Python (uvloop, constant answer), same client, µs",
            *spread(f["python_floor"], MICRO),
        ],
        ["echo server in C, same client, µs", *spread(f["c_echo"], MICRO)],
        ["acquire ÷ smallest Python server (≤ 1.5; ≤ 4)", *_both(f["acquire_over_python_floor"])],
        *_bursts(f.get("bursts")),
        ["a release answered, µs", *spread(f["release"], MICRO)],
        ["release answered ÷ acquire (≤ 1.5)", *_both(f["release_over_acquire"])],
        ["acquire, connect, one query, ms", *spread(f["first_row"], MILLI)],
        [
            "connect to a database that was already warm, one query, ms",
            *spread(f["warm_connect_row"], MILLI),
        ],
        ["first row ÷ warm (≤ 1.4)", *_both(f["first_row_over_warm"])],
        [
            "a clone of `examples/blog` made, verified and warmed, ms (< 200)",
            *spread(f["clone_made"], MILLI),
        ],
        ["daemon resident with 100 clones, MiB (< 80)", f"{resident:.0f}", ""],
        ["CPU of the idle daemon, share of a core", f"{f['daemon_idle_cpu_share']:.2%}", ""],
    ]


def _bursts(found: dict[str, Any] | None) -> list[list[str]]:
    """Return the rows about acquires in a burst and after a pause; older results have none."""
    if found is None:
        return []
    return [
        ["a ping in a burst, µs", *spread(found["ping"], MICRO)],
        ["acquire in a burst, each with a refill, µs", *spread(found["acquire"], MICRO)],
        ["acquire ÷ ping in a burst (≤ 1.5)", *_both(found["acquire_over_ping"])],
        ["acquire after a pause of 30 ms, µs", *spread(found["acquire_after_pause"], MICRO)],
        [
            "smallest server in Python after the same pause, µs",
            *spread(found["floor_after_pause"], MICRO),
        ],
        [
            "acquire ÷ smallest Python server after a pause (≤ 1.3)",
            *_both(found["acquire_over_floor_after_pause"]),
        ],
    ]


def machine(report: dict[str, Any]) -> str:
    """Return in one sentence when and on what the figures were measured."""
    m, figures = report["machine"], report["figures"]
    return textwrap.fill(
        f"Measured on {m['date']}: {m['cpu']}, {m['cores']} cores, PostgreSQL"
        f" {figures['first_light']['postgresql']}, its data"
        f" {'in memory' if figures['recycling']['storage'] == 'memory' else 'on disk'}, fsync off;"
        f" a template of {TABLES} tables of {ROWS} rows, {CHANGED} of them changed by each test.",
        100,
    )


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
    return table(
        [f"{found['clients']} clients", *head[1:]],
        [
            [
                NAMES[way],
                _rate(each),
                *spread(each["got"], MILLI),
                *spread(each["gave"], MILLI),
                *(milli(each[f"{who}_cpu"]) for who in ("server", "backend", "daemon", "client")),
            ]
            for way, each in found["ways"].items()
        ],
    )


def _by_clients(found: dict[str, Any]) -> str:
    lines = found["per_second_by_clients"]
    counts = [str(clients) for clients, _ in lines["rewound"]]
    return table(
        ["a second, by clients", *counts],
        [[NAMES[way], *(f"{rate:.0f}" for _, rate in points)] for way, points in lines.items()],
    )


def _scaling(found: dict[str, Any]) -> str:
    names = {
        "ready": "clones ready",
        "clients": "clients connected, one of them asks",
        "clients_in_turn": "clients connected, all ask in turn",
    }
    return table(
        ["", "how many", "p50, µs", "p99, µs"],
        [
            [name, f"{each['size']:,}", *spread(each, MICRO)]
            for key, name in names.items()
            for each in found[key]["sizes"]
        ],
    )


def _rate(way: dict[str, Any]) -> str:
    return f"{way['per_second']:.0f}"


def _cpu(way: dict[str, Any]) -> str:
    return milli(way["server_cpu"] + way["daemon_cpu"])


def _split(way: dict[str, Any]) -> str:
    return "; ".join(milli(way[f"{who}_cpu"]) for who in ("daemon", "server", "backend"))


def _both(found: dict[str, float]) -> tuple[str, str]:
    return f"{found['p50']:.2f}", f"{found['p99']:.2f}"


def _span(found: dict[str, Any]) -> str:
    return f"{found['sizes'][-1]['size']:,} ÷ {found['sizes'][0]['size']}"


def _grown(found: dict[str, Any]) -> str:
    return f"{found['growth']['p50']:.2f}; {found['growth']['p99']:.2f}"
