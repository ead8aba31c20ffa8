"""The methods about leases: acquire, release, renew, reset, reserve."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clonepool.core.decisions import Request
from clonepool.errors import ClientLimitError
from clonepool.protocol.messages import ReserveResult
from clonepool.service.api.progress import AcquireProgress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clonepool.protocol.messages import Acquire, Release, Renew, Reserve, Reset
    from clonepool.service.api.progress import BuildSteps
    from clonepool.service.call import Call
    from clonepool.service.dispatcher import Dispatcher

RENEW_SECONDS = 10.0
"""Seconds within which a renewal is written down, or refused."""
_TOKEN_BYTES = 16
"""Random bytes in a lease's token, which is in hex: it never looks like an option of a command."""


class LeaseMethods:
    """Puts what clients ask about leases to the dispatcher, which answers.

    Args:
        dispatcher: answers.
        steps: knows how far builds are, for clients that want to be told of progress.
        acquire_timeout: seconds that an acquire waits that names no timeout.
        max_leases: leases that one connection may hold at a time.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        steps: BuildSteps,
        *,
        acquire_timeout: float,
        max_leases: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._steps = steps
        self._acquire_timeout = acquire_timeout
        self._max_leases = max_leases

    def acquire(self, call: Call, params: Acquire) -> None:
        """Grant a lease now, or when there is a clone, or say why not.

        After a pause each Python call costs microseconds, so a hit makes few.
        """
        dispatcher, connection = self._dispatcher, call.connection
        if connection.most_leases >= self._max_leases:
            # Each acquire that waits may become a lease.
            held = self._count_leases(connection.number)
            connection.most_leases = held + len(connection.open_calls)
        connection.most_leases += 1
        now = dispatcher.now()
        timeout = self._acquire_timeout if params.timeout is None else params.timeout
        request = Request(
            waiter=call.number,
            token=os.urandom(_TOKEN_BYTES).hex(),
            holder=connection.number,
            label=params.label or connection.client,
            asked_at=now,
            deadline=now + timeout,
            ttl=params.ttl,
            fresh=params.fresh,
            stale_ok=params.stale_ok,
        )
        dispatcher.acquire(call, params.template, request)
        if call.is_answered:
            return
        self._let_cancel(call)
        if params.progress:
            pool = dispatcher.fleet.pools[params.template]
            AcquireProgress(dispatcher, self._steps, call, pool).begin()

    def reset(self, call: Call, params: Reset) -> None:
        """Make the clone of a lease clean again, or give the lease another one."""
        timeout = self._acquire_timeout if params.timeout is None else params.timeout
        self._dispatcher.reset(call, params.lease, self._request(call, timeout))
        if not call.is_answered:
            self._let_cancel(call)

    def renew(self, call: Call, params: Renew) -> None:
        """Renew a lease."""
        request = self._request(call, RENEW_SECONDS)
        self._dispatcher.renew(call, params.lease, params.ttl, request)

    def release(self, call: Call, params: Release) -> None:
        """End a lease; its clone is recycled, or kept for inspection."""
        if params.keep:
            lease = self._dispatcher.fleet.lease(params.lease)
            seconds = self._dispatcher.fleet.pools[lease.template].limits.keep_for
            self._dispatcher.keep(call, params.lease, seconds)
        else:
            self._dispatcher.release(call, params.lease, report=params.report)

    def reserve(self, call: Call, params: Reserve) -> None:
        """Announce tests, for which clones are made ready."""
        pool = self._dispatcher.reserve(
            params.template, call.holder, params.tests, params.parallelism
        )
        call.reply(ReserveResult(pool.target, pool.ready))

    def disconnect(self, holder: int, open_calls: Iterable[Call]) -> None:
        """End the leases of a connection, and take back what its open calls wait for."""
        self._dispatcher.disconnect(holder, open_calls)

    def _count_leases(self, holder: int) -> int:
        """Count the leases of a connection, which may hold one more.

        Each acquire adds one to an upper bound, and the leases of all templates are counted only
        when that reaches the limit.

        Raises:
            ClientLimitError: the connection holds as many as it may.
        """
        held = self._dispatcher.fleet.held_by(holder)
        if held >= self._max_leases:
            raise ClientLimitError(
                f"this connection holds {held} leases",
                remedy="release some, or raise access.max_leases_per_client",
            )
        return held

    def _request(self, call: Call, timeout: float) -> Request:
        """Return a request about a lease that the call names by its token."""
        now = self._dispatcher.now()
        token = os.urandom(_TOKEN_BYTES).hex()
        return Request(call.number, token, call.holder, "", now, now + timeout)

    def _let_cancel(self, call: Call) -> None:
        call.on_cancel(lambda: self._dispatcher.cancel(call))
