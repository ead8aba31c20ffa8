"""Leases as the protocol shows them to clients: the one place that turns a grant into a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.protocol.messages import AcquireResult, LeaseNews, RenewResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.core.decisions import Grant, Lease, Notice, Renewed
    from clonepool.postgres.endpoint import Endpoint
    from clonepool.service.credentials import Credentials


class LeaseResults:
    """Puts decisions about leases into words.

    Args:
        endpoint: where leases connect to.
        credentials: know the logins of clones.
        now: returns monotonic seconds.
    """

    def __init__(
        self, endpoint: Endpoint, credentials: Credentials, now: Callable[[], float]
    ) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._now = now

    def granted(self, grant: Grant) -> AcquireResult:
        """Return the answer to an acquire or a reset."""
        lease = grant.lease
        login = self._credentials.of(lease)
        return AcquireResult(
            lease=lease.token,
            template=lease.template,
            generation=lease.generation,
            database=lease.clone,
            url=login.url,
            host=self._endpoint.host,
            port=self._endpoint.port,
            user=login.user,
            password=login.password,
            env=login.env,
            source=grant.source,
            waited_seconds=grant.waited_seconds,
            expires_in_seconds=None if lease.expires_at is None else self._seconds_left(lease),
        )

    def renewed(self, renewed: Renewed) -> RenewResult:
        """Return the answer to a renewal."""
        return RenewResult(self._seconds_left(renewed.lease))

    def news(self, notice: Notice) -> LeaseNews:
        """Return what the holder of a lease is told without having asked."""
        lease = notice.lease
        return LeaseNews(
            lease.token, lease.template, lease.clone, lease.label, round(notice.seconds, 3)
        )

    def _seconds_left(self, lease: Lease) -> float | None:
        return None if lease.expires_at is None else round(lease.expires_at - self._now(), 3)
