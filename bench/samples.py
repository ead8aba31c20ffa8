"""Summaries of many measured times: median, tail, and the distribution."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHARES = (*(n / 100 for n in range(100)), 0.995, 0.999, 1.0)
"""Quantiles of a distribution for a chart: every percent, and the tail in finer steps."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which this share of sorted values lies."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Return count, median, 99th percentile and maximum."""
    ordered = sorted(seconds)
    return {
        "count": len(ordered),
        "p50": quantile(ordered, 0.5),
        "p99": quantile(ordered, 0.99),
        "max": ordered[-1],
    }


def distribution(seconds: Sequence[float]) -> dict[str, Any]:
    """Return the summary and a curve of (value, share of values up to it)."""
    ordered = sorted(seconds)
    curve = [[float(f"{quantile(ordered, share):.4g}"), share] for share in _SHARES]
    return {**summary(ordered), "curve": curve}


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return how many times theirs ours is, at the median and in the tail."""
    return {key: ours[key] / theirs[key] for key in ("p50", "p99")}


def middle(values: Sequence[float]) -> float:
    """Return the median of a few rounds."""
    return statistics.median(values)
