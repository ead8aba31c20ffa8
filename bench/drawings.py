"""The charts of the results, by file name."""

from __future__ import annotations

from typing import Any

from bench.charts import Axis, Chart, Series, render
from bench.work import CHANGED

MICRO, MILLI = 1e6, 1e3
_SHARE = Axis("share of all, %")
_MILLISECONDS = Axis("milliseconds", log=True)
NAMES = {
    "rewound": "leases, rewound",
    "connecting": "leases, rewound by a new session each",
    "recreated": "leases, recreated",
    "wal_log": "CREATE (WAL_LOG) and DROP",
    "file_copy": "CREATE (FILE_COPY) and DROP",
}
"""The ways to get a database, as charts and tables name them."""


def draw(figures: dict[str, Any]) -> dict[str, str]:
    """Return each chart as an SVG document."""
    recycling, scaling = figures["recycling"], figures["scaling"]
    return {
        "acquire.svg": render(_acquire(figures["first_light"])),
        "recycle.svg": render(_recycle(recycling)),
        "recycle_by_template.svg": render(_by_template(recycling)),
        "recycle_by_tables.svg": render(_by_tables(recycling)),
        "recycle_by_rows.svg": render(_by_rows(recycling)),
        "leases_by_clients.svg": render(_by_clients(figures["saturation"])),
        "acquire_by_ready.svg": render(_scaling(scaling["ready"], "clones ready")),
        "acquire_by_clients.svg": render(_scaling(scaling["clients"], "clients connected")),
    }


def _acquire(found: dict[str, Any]) -> Chart:
    lines = {
        "acquire": "acquire of a ready clone",
        "python_floor": "smallest Python server",
        "c_echo": "echo server in C",
    }
    return Chart(
        "Acquire: how many took how long",
        Axis("microseconds", log=True),
        _SHARE,
        [_curve(name, found[key], MICRO) for key, name in lines.items()],
    )


def _recycle(found: dict[str, Any]) -> Chart:
    lines = [(f"{t['tables']} tables changed", t) for t in found["by_tables"]]
    lines[0] = ("nothing changed", found["by_tables"][0])
    return Chart(
        "Recycle, 20 tables of 100 rows: how many took how long",
        _MILLISECONDS,
        _SHARE,
        [
            _curve(name, each["recycle"], MILLI)
            for name, each in lines
            if each["tables"] in (0, CHANGED, 16)
        ],
    )


def _by_template(found: dict[str, Any]) -> Chart:
    sizes = found["by_size"]
    plain = [(each["bytes"] / 2**20, _plain(each) * MILLI) for each in sizes]
    recycles = [(each["bytes"] / 2**20, each) for each in sizes]
    return Chart(
        "The same change in larger and larger templates",
        Axis("size of the template, MiB", log=True),
        _MILLISECONDS,
        [*_rewound_or_not(recycles), Series("DROP and CREATE", plain)],
    )


def _by_tables(found: dict[str, Any]) -> Chart:
    recycles = [(each["tables"], each) for each in found["by_tables"]]
    plain = _plain(found["small"]) * MILLI
    return Chart(
        "Recycle after changes in more and more of 20 small tables",
        Axis("tables changed, of 20"),
        Axis("milliseconds"),
        [
            *_rewound_or_not(recycles),
            Series("DROP and CREATE", [(tables, plain) for tables, _ in recycles]),
        ],
    )


def _by_rows(found: dict[str, Any]) -> Chart:
    recycles = [(each["rows"], each) for each in found["by_rows"]]
    (about,) = (each for each in found["by_size"] if each["mib"] == found["by_rows_mib"])
    plain = _plain(about) * MILLI
    return Chart(
        f"Recycle after more and more rows changed, template of {found['by_rows_mib']} MiB",
        Axis("rows updated", log=True),
        _MILLISECONDS,
        [
            *_rewound_or_not(recycles),
            Series("DROP and CREATE", [(rows, plain) for rows, _ in recycles]),
        ],
    )


def _by_clients(found: dict[str, Any]) -> Chart:
    return Chart(
        "Databases a second, four tables changed in each",
        Axis("clients that never pause"),
        Axis("a second"),
        [
            Series(NAMES[way], [(clients, rate) for clients, rate in points])
            for way, points in found["per_second_by_clients"].items()
        ],
    )


def _scaling(found: dict[str, Any], what: str) -> Chart:
    return Chart(
        f"Acquire with more and more {what}, the server faked",
        Axis(what, log=True),
        Axis("microseconds"),
        [
            Series(name, [(each["size"], each[name] * MICRO) for each in found["sizes"]])
            for name in ("p50", "p99")
        ],
    )


def _curve(name: str, found: dict[str, Any], scale: float) -> Series:
    points = [(seconds * scale, share * 100) for seconds, share in found["curve"]]
    return Series(name, points, dots=False)


def _plain(about: dict[str, Any]) -> float:
    """Return the seconds of DROP and CREATE by the faster strategy."""
    return float(about["drop_and_create"][about["faster_plain"]]["p50"])


def _rewound_or_not(recycles: list[tuple[float, dict[str, Any]]]) -> list[Series]:
    """Return what was rewound and what was recreated as lines of their own."""
    lines: dict[str, list[tuple[float, float]]] = {"rewound": [], "recreated": []}
    for at, each in recycles:
        which = "rewound" if each["rewound_share"] > 0.5 else "recreated"
        lines[which].append((at, each["recycle"]["p50"] * MILLI))
    return [Series(name, points) for name, points in lines.items() if points]
