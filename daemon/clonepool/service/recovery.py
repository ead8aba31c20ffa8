"""What an earlier daemon left on the server: taken over where that is proven right, else dropped.

Nothing is believed that was not written down: a clone is whole and clean only if it was parked, and
leased or kept only if its comment says so. Everything else of ours is in an unknown state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from clonepool.core.decisions import Lease
from clonepool.core.naming import Kind
from clonepool.errors import ClonepoolError
from clonepool.postgres import databases
from clonepool.service import clone_comment
from clonepool.service.clock import seconds_until

if TYPE_CHECKING:
    from clonepool.core.pool import Pool
    from clonepool.postgres.databases import Database
    from clonepool.service.context import Context

log = structlog.get_logger()

NOBODY = 0
"""The holder of a lease that was found: its connection is gone."""


async def take_over(context: Context, ours: list[Database]) -> None:
    """Give each database to its pool, or drop it.

    Clones of configured templates go through their pool in any case, so that they count against the
    limits until they are gone.
    """
    current = _current_leases(context, ours)
    for database in ours:
        identity = database.identity
        pool = context.fleet.pools.get(identity.template)
        if identity.kind is Kind.CLONE and pool is not None:
            _enter(context, pool, database, current)
        elif identity.kind is Kind.CLONE and _is_leased(context, database):
            log.warning(
                "database.left", database=database.name, reason="leased, and of no known template"
            )
        elif identity.kind is not Kind.GENERATION or pool is None:
            await _drop(context, database)


def _current_leases(context: Context, ours: list[Database]) -> set[str]:
    """Return the clones whose lease is living and stands nowhere else in a later state."""
    latest: dict[str, tuple[float, str]] = {}
    for database in ours:
        found = _said(context, database)
        if isinstance(found, clone_comment.LeasedComment) and _is_leased(context, database):
            written = (seconds_until(found.written), database.name)
            latest[found.token] = max(written, latest.get(found.token, written))
    return {name for _, name in latest.values()}


def _enter(context: Context, pool: Pool, database: Database, current: set[str]) -> None:
    name, now = database.name, context.now()
    match _said(context, database):
        case clone_comment.LeasedComment() as found if database.open and name in current:
            log.info("lease.found", clone=name, label=found.label)
            context.credentials.found(name, found.occasion)
            pool.found_leased(_lease(database, found, now))
        case clone_comment.KeptComment() as found if seconds_until(found.until) > 0:
            log.info("clone.found_kept", clone=name, label=found.label)
            pool.found_kept(name, now + seconds_until(found.until))
        case clone_comment.ParkedComment() as found if not database.open:
            pool.found_parked(name, database.identity.generation, used=found.used)
        case _:
            log.info("database.swept", database=name, kind="clone")
            context.carry_out(pool.found(name))


def _said(context: Context, database: Database) -> clone_comment.Comment:
    return context.comments.read(database.name, database.comment)


def _is_leased(context: Context, database: Database) -> bool:
    found = _said(context, database)
    return isinstance(found, clone_comment.LeasedComment) and seconds_until(found.until) > 0


def _lease(database: Database, found: clone_comment.LeasedComment, now: float) -> Lease:
    return Lease(
        token=found.token,
        template=database.identity.template,
        generation=database.identity.generation,
        clone=database.name,
        holder=NOBODY,
        label=found.label,
        granted_at=now + seconds_until(found.granted),
        ttl=found.ttl,
        expires_at=now + seconds_until(found.until),
    )


async def _drop(context: Context, database: Database) -> None:
    log.info("database.swept", database=database.name, kind=database.identity.kind.name.lower())
    try:
        await databases.drop(context.gateway, database.name, sealed=True)
    except ClonepoolError as error:
        context.failures.begin("database.sweep_failed", "", error, database=database.name)
