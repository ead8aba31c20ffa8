"""What an earlier daemon left on the server: taken over where it is proven clean, else dropped.

Only what was written down is believed: a clone is whole and clean only if it was parked, and leased
or kept only if its comment says so. Every other database of this instance is in an unknown state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import structlog

from clonepool.core.decisions import Lease
from clonepool.core.events import FoundKept, FoundLeased, FoundParked, FoundUnknown
from clonepool.core.naming import Kind
from clonepool.postgres import databases
from clonepool.service import clone_comment
from clonepool.service.clock import seconds_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonepool.core.events import Event
    from clonepool.core.fleet import Fleet
    from clonepool.postgres.databases import Database
    from clonepool.postgres.gateway import Gateway
    from clonepool.service.clone_comment import Comments
    from clonepool.service.credentials import Credentials
    from clonepool.service.event_handler import EventHandler
    from clonepool.service.failures import Failures

log = structlog.get_logger()

NO_HOLDER = 0
"""The holder of a lease that was found: its connection has ended."""


class Recovery:
    """Finds out what each database is, before the first client is served.

    Args:
        comments: read what the earlier daemon wrote.
        credentials: take the passwords of leases over.
        events: gives the clones of known templates to their pools.
        failures: logs what cannot be dropped.
        fleet: the pools.
        gateway: the way to the server.
        now: monotonic seconds.
    """

    def __init__(
        self,
        *,
        comments: Comments,
        credentials: Credentials,
        events: EventHandler,
        failures: Failures,
        fleet: Fleet,
        gateway: Gateway,
        now: Callable[[], float],
    ) -> None:
        self._comments = comments
        self._credentials = credentials
        self._events = events
        self._failures = failures
        self._fleet = fleet
        self._gateway = gateway
        self._now = now

    async def take_over(self, ours: Iterable[Database]) -> None:
        """Give each database to its pool, or drop it.

        Clones of known templates always go through their pool, so that they count against the
        limits until they are gone. A leased clone of an unknown template is not touched.

        Args:
            ours: the databases of this instance.
        """
        ours = list(ours)
        current = self._current_leases(ours)
        for database in ours:
            identity = database.identity
            is_known = identity.template in self._fleet.pools
            if identity.kind is Kind.CLONE and is_known:
                self._events.handle(self._enter(database, current))
            elif identity.kind is Kind.CLONE and self._is_leased(database):
                log.warning(
                    "database.left",
                    database=database.name,
                    reason="leased, and of no known template",
                )
            elif identity.kind is not Kind.GENERATION or not is_known:
                await self._drop(database)

    def _current_leases(self, ours: list[Database]) -> set[str]:
        """Return the clones whose lease is alive, and written on no other clone later."""
        latest: dict[str, tuple[float, str]] = {}
        for database in ours:
            found = self._comment_of(database)
            if isinstance(found, clone_comment.LeasedComment) and self._is_leased(database):
                written = (seconds_until(found.written), database.name)
                latest[found.token] = max(written, latest.get(found.token, written))
        return {name for _, name in latest.values()}

    def _enter(self, database: Database, current: set[str]) -> Event:
        """Return what was found for the clone's pool."""
        name, template, now = database.name, database.identity.template, self._now()
        comment = self._comment_of(database)
        match comment:
            case clone_comment.LeasedComment() as found if database.open and name in current:
                log.info("lease.found", clone=name, label=found.label)
                self._credentials.found(name, found.occasion)
                return FoundLeased(_lease(database, found, now))
            case clone_comment.KeptComment() as found if seconds_until(found.until) > 0:
                log.info("clone.found_kept", clone=name, label=found.label)
                return FoundKept(template, name, now + seconds_until(found.until))
            case clone_comment.ParkedComment() as found if not database.open:
                generation = database.identity.generation
                return FoundParked(template, name, generation, used=found.used)
            case (
                clone_comment.LeasedComment()
                | clone_comment.KeptComment()
                | clone_comment.ParkedComment()
                | clone_comment.OtherComment()
            ):
                log.info("database.swept", database=name, kind="clone")
                return FoundUnknown(template, name)
            case _:
                assert_never(comment)

    def _comment_of(self, database: Database) -> clone_comment.Comment:
        return self._comments.read(database.name, database.comment)

    def _is_leased(self, database: Database) -> bool:
        found = self._comment_of(database)
        return isinstance(found, clone_comment.LeasedComment) and seconds_until(found.until) > 0

    async def _drop(self, database: Database) -> None:
        kind = database.identity.kind.name.lower()
        log.info("database.swept", database=database.name, kind=kind)
        with self._failures.attempt("database.sweep_failed", database=database.name):
            await databases.drop(self._gateway, database.name, sealed=True)


def _lease(database: Database, found: clone_comment.LeasedComment, now: float) -> Lease:
    return Lease(
        token=found.token,
        template=database.identity.template,
        generation=database.identity.generation,
        clone=database.name,
        holder=NO_HOLDER,
        label=found.label,
        granted_at=now + seconds_until(found.granted),
        ttl=found.ttl,
        expires_at=now + seconds_until(found.until),
    )
