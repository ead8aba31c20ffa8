"""The state that the daemon reports: to clients, and on the health page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.core.limits import Limit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from clonepool.core.decisions import PoolSnapshot
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.capabilities import Capabilities
    from clonepool.postgres.clones.copier import Copiers
    from clonepool.postgres.gateway import Gateway
    from clonepool.service.storage import StorageBudget


class StatusBoard:
    """Snapshots on demand.

    Args:
        fleet: holds the pools.
        capabilities: what is known of the server.
        gateway: knows where the server is; the password is never shown.
        storage: knows what room is left.
        copiers: know how clones are copied.
        instance: the daemon's name among others on the server.
        configured: names of the templates that clients did not make.
        recreated_because: by template, why a clone was last recreated that was to be rewound.
        server_problem: says what is wrong with the server, or nothing.
        short_of: returns what the machine is short of: `files`, `memory`, `processes`.
        now: returns monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - by name, at the one place where the daemon is put together
        self,
        *,
        fleet: Fleet,
        capabilities: Capabilities,
        gateway: Gateway,
        storage: StorageBudget,
        copiers: Copiers,
        instance: str,
        configured: Collection[str],
        recreated_because: Mapping[str, str],
        server_problem: Callable[[], str],
        short_of: Callable[[], list[str]],
        now: Callable[[], float],
    ) -> None:
        self.short_of = short_of
        self._fleet = fleet
        self._capabilities = capabilities
        self._gateway = gateway
        self._storage = storage
        self._copiers = copiers
        self._instance = instance
        self._configured = configured
        self._recreated_because = recreated_because
        self._problem = server_problem
        self._now = now
        self._started_at = now()

    def pools(self) -> list[PoolSnapshot]:
        """Return a snapshot of each pool."""
        return [pool.snapshot() for pool in self._fleet.pools.values()]

    def connections(self) -> tuple[int, int]:
        """Return the connections to the server: the daemon's own at most, and max_connections."""
        return self._gateway.connections + 1, self._capabilities.max_connections

    def strategies(self) -> Iterator[tuple[str, str, bool]]:
        """Return the copy strategies of each template, and whether each is the one in use."""
        return self._copiers.strategies()

    def problem(self) -> str:
        """Say what is wrong with the server: it is away, or does not let the daemon work."""
        pools = self.pools()
        refused = (pool.last_error for pool in pools if pool.limited_by == Limit.SERVER)
        return self._problem() or next(filter(None, refused), "")

    def status(self) -> dict[str, Any]:
        """Return the answer to `status`."""
        budget = self._fleet.budget
        return {
            "instance": self._instance,
            "uptime_seconds": round(self._now() - self._started_at, 3),
            "stopping": self._fleet.stopping,
            "short_of": self.short_of(),
            "server": {
                "version": self._capabilities.version_text,
                "host": self._gateway.endpoint.host,
                "port": self._gateway.endpoint.port,
                "max_connections": self._capabilities.max_connections,
                "own_connections": self._gateway.connections + 1,
                "free_bytes": self._storage.free(),
                "problem": self.problem(),
                "no_rewinds_because": self._capabilities.no_rewinds_because,
            },
            "clones": {"max": budget.limit, "used": budget.used},
            "pools": [
                {
                    **msgspec.to_builtins(pool),
                    "copy": self._copiers.shown(pool.template),
                    "recreated_because": self._recreated_because.get(pool.template, ""),
                }
                for pool in self.pools()
            ],
        }

    def leases(self) -> list[dict[str, Any]]:
        """Return the answer to `leases`, without the tokens: they are the holders' secrets."""
        now = self._now()
        return [
            {
                "template": lease.template,
                "database": lease.clone,
                "label": lease.label,
                "connection": lease.holder,
                "held_seconds": round(now - lease.granted_at, 3),
                "ttl": lease.ttl,
                "expires_in_seconds": (
                    None if lease.expires_at is None else round(lease.expires_at - now, 3)
                ),
            }
            for lease in self._fleet.leases()
        ]

    def templates(self) -> list[dict[str, Any]]:
        """Return the answer to `templates`."""
        return [
            {
                "template": pool.template,
                "configured": pool.template in self._configured,
                "phase": pool.phase,
                "generation": pool.generation,
                "failure": pool.failure,
                "draining": pool.draining,
                "ready": pool.ready,
                "leased": pool.leased,
                "min_ready": pool.min_ready,
                "max_clones": pool.max_clones,
            }
            for pool in self.pools()
        ]

    def not_ready(self) -> list[str]:
        """Return why the daemon cannot serve, or nothing when it can.

        Any user of the machine may read this. The causes may contain a project's SQL, and are shown
        on the socket only.
        """
        reasons = ["the server cannot be reached"] if self._problem() else []
        if not reasons and self.problem():
            reasons = ["the server does not let the daemon in"]
        reasons += ["the daemon is stopping"] if self._fleet.stopping else []
        for pool in self.pools():
            if pool.template not in self._configured:
                continue  # templates that clients made are those clients' concern
            why = f" ({pool.limited_by})" if pool.limited_by else ""
            if pool.draining:
                reasons.append(f"template {pool.template}: draining")
            elif pool.phase != "ready":
                reasons.append(f"template {pool.template}: {pool.phase}{why}")
            elif not pool.ready and not pool.leased and pool.min_ready:
                reasons.append(f"template {pool.template}: no clone is ready{why}")
        return reasons
