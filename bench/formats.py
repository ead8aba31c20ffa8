"""Formats figures with three significant digits, in Markdown tables."""

from __future__ import annotations

from typing import Any

MICRO, MILLI, MIB = 1e6, 1e3, 2**20


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def milli(seconds: float) -> str:
    """Return milliseconds."""
    return digits(seconds * MILLI)


def spread(found: dict[str, Any], scale: float) -> tuple[str, str]:
    """Return the median and the 99th percentile."""
    return digits(found["p50"] * scale), digits(found["p99"] * scale)


def digits(value: float) -> str:
    """Return three digits that count, and no power of ten."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def block(name: str, text: str) -> str:
    """Return a part of the results that the docs show wherever they have a block of this name.

    `docs/refresh.py` copies it there. A text of one line stays within its line.
    """
    end = "\n" if "\n" in text else ""
    return f"<!-- bench: {name} -->{end}{text}{end}<!-- end of {name} -->"
