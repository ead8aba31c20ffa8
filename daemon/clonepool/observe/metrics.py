"""Prometheus metrics, on a registry that is passed in. docs/metrics.md names each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from clonepool.core.limits import Limit
from clonepool.resource_errors import OF_THE_MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from prometheus_client import Metric

    from clonepool.core.decisions import PoolSnapshot

ACQUIRE_BUCKETS = (
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
DDL_BUCKETS = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
LAG_BUCKETS = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
GAUGE_STATES = (
    "creating", "ready", "leased", "returned", "recycling", "kept", "parked", "dropping",
)  # fmt: skip


BY_CLIENTS = "made-by-clients"
"""The label of all templates that clients made: their names come and go, and labels stay."""


class TemplateMetrics:
    """The metrics of one template, labels bound: binding them takes too long for an acquire."""

    def __init__(self, metrics: Metrics, template: str) -> None:
        self.acquire_seconds = metrics.acquire_seconds.labels(template)
        self.hits = metrics.acquires.labels(template, "ready")
        self.waits = metrics.acquires.labels(template, "waited")
        self.create_seconds = metrics.create_seconds.labels(template)
        self.drop_seconds = metrics.drop_seconds.labels(template)
        self.rewind_seconds = metrics.rewind_seconds.labels(template)
        self.rewound = metrics.recycles.labels(template, "rewound")
        self.recreated = metrics.recycles.labels(template, "recreated")
        self.proofs_failed = metrics.proofs_failed.labels(template)
        self.build_seconds = metrics.build_seconds.labels(template)


class Metrics:
    """All counters and histograms.

    Args:
        registry: where they are registered.
        templates: names of all templates; the label set is closed.
    """

    def __init__(self, registry: CollectorRegistry, templates: Iterable[str]) -> None:
        self.registry = registry

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"clonepool_{name}", says, labels, registry=registry)

        def histogram(name: str, says: str, buckets: Sequence[float] = DDL_BUCKETS) -> Histogram:
            labels = ("template",)
            return Histogram(f"clonepool_{name}", says, labels, buckets=buckets, registry=registry)

        self.acquire_seconds = histogram(
            "acquire_seconds", "Time from an acquire's arrival to its grant.", ACQUIRE_BUCKETS
        )
        self.acquires = counter(
            "acquires",
            "Acquires granted, at once (ready) or after waiting (waited).",
            "template",
            "source",
        )
        self.refusals = counter("refusals", "Acquires refused, by error code.", "template", "code")
        self.create_seconds = histogram(
            "create_seconds", "Time to copy, verify and prewarm a clone."
        )
        self.drop_seconds = histogram("drop_seconds", "Time to drop a clone.")
        self.rewind_seconds = histogram(
            "rewind_seconds", "Time to find and undo what a lease changed."
        )
        self.recycles = counter(
            "recycles", "Returned clones, rewound in place or recreated.", "template", "outcome"
        )
        self.proofs_failed = counter(
            "proofs_failed", "Rewound clones that were not what their template is.", "template"
        )
        self.build_seconds = histogram(
            "build_seconds", "Time to find or build a template's generation."
        )
        self.server_errors = counter(
            "server_errors",
            "Statements that failed, by class of SQLSTATE; `unavailable` when there was no answer.",
            "sqlstate_class",
        )
        self.leaked_sessions = counter(
            "leaked_sessions", "Sessions still open on a clone when its lease ended."
        )
        self.server_changes = counter(
            "server_changes",
            "Changes of the server as a whole that leases left, and whether they were undone.",
            "outcome",
        )
        self.connections_refused = counter(
            "connections_refused",
            "Socket connections refused: no permission, or too many connections.",
            "code",
        )
        self.connections_cut = counter(
            "connections_cut", "Clients cut off because they did not read their replies."
        )
        self.http_connections_cut = counter(
            "http_connections_cut",
            "HTTP connections cut off: too slow (late), too long (large), too many (crowded).",
            "reason",
        )
        self.event_loop_lag_seconds = Histogram(
            "clonepool_event_loop_lag_seconds",
            "How late the event loop was, measured a few times a second.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.lease_news = counter(
            "lease_news",
            "Leases that were about to end by time (expiring) or did (expired).",
            "template",
            "news",
        )
        self.clones_lost = counter(
            "clones_lost", "Clones that others dropped or renamed.", "template"
        )
        self.of = {template: TemplateMetrics(self, template) for template in templates}
        self._configured = frozenset(self.of)

    def label(self, template: str) -> str:
        """Return the label of a template."""
        return template if template in self._configured else BY_CLIENTS

    def enter(self, template: str) -> None:
        """Begin to count for a template that a client made."""
        if template not in self.of:
            self.of[template] = TemplateMetrics(self, self.label(template))

    def remove(self, template: str) -> None:
        """Stop counting for a template that is gone."""
        del self.of[template]


class _Gauge:
    """One gauge; values with the same labels are added up."""

    def __init__(self, name: str, says: str, *labels: str) -> None:
        self._about = f"clonepool_{name}", says
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, value: float, *labels: str) -> None:
        self._values[labels] = self._values.get(labels, 0.0) + value

    def family(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(*self._about, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class PoolCollector(Collector):
    """Gauges, read from a snapshot at the scrape.

    Args:
        snapshots: returns one of each pool.
        connections: returns how many clients are connected.
        server_up: says whether the server answers.
        server_connections: returns how many connections the daemon may have, and how many there
            may be.
        strategies: returns template, strategy, and whether it is chosen.
        label: returns the label of a template.
        short_of: returns what the machine is short of.
    """

    def __init__(
        self,
        snapshots: Callable[[], list[PoolSnapshot]],
        connections: Callable[[], int],
        server_up: Callable[[], bool],
        server_connections: Callable[[], tuple[int, int]],
        strategies: Callable[[], Iterable[tuple[str, str, bool]]],
        label: Callable[[str], str] = str,
        short_of: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._label = label
        self._short_of = short_of
        self._snapshots = snapshots
        self._connections = connections
        self._server_up = server_up
        self._server_connections = server_connections
        self._strategies = strategies

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        clones = _Gauge("clones", "Clones by state.", "template", "state")
        waiting = _Gauge("waiting", "Acquires in the queue.", "template")
        target = _Gauge(
            "target_ready", "Clones that are to be ready when no request waits.", "template"
        )
        template = _Gauge("template_ready", "Whether the template can be leased.", "template")
        limited = _Gauge(
            "limited",
            "Whether this limit keeps the pool from making a clone that it wants.",
            "template",
            "limit",
        )
        copying = _Gauge(
            "copy_strategy",
            "Whether clones are copied this way; no way while it is being measured.",
            "template",
            "strategy",
        )
        for pool in self._snapshots():
            label = self._label(pool.template)
            for limit in Limit:
                limited.add(float(pool.limited_by == limit), label, limit)
            for state in GAUGE_STATES:
                clones.add(getattr(pool, state), label, state)
            waiting.add(pool.waiting, label)
            target.add(pool.target, label)
            template.add(float(pool.phase == "ready"), label)
        for name, strategy, chosen in self._strategies():
            copying.add(float(chosen), self._label(name), strategy)
        for gauge in (clones, waiting, target, template, limited, copying):
            yield gauge.family()
        yield GaugeMetricFamily(
            "clonepool_connections", "Clients connected.", value=self._connections()
        )
        short = _Gauge("short", "Whether the machine is short of this.", "resource")
        for resource in OF_THE_MACHINE:
            short.add(float(resource in self._short_of()), resource)
        yield short.family()
        own, most = self._server_connections()
        yield GaugeMetricFamily(
            "clonepool_server_max_connections",
            "The server's max_connections.",
            value=most,
        )
        yield GaugeMetricFamily(
            "clonepool_server_own_connections",
            "How many of them the daemon may use at a time.",
            value=own,
        )
        yield GaugeMetricFamily(
            "clonepool_server_up",
            "Whether PostgreSQL answers and the instance lock is held.",
            value=float(self._server_up()),
        )
