"""What a lease can leave behind that outlives its sessions and holds on to the database.

These are prepared transactions, replication slots and subscriptions. While there is one, DROP
DATABASE fails, even WITH (FORCE), and a rewind must not begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.errors import TemplateFailedError
from clonepool.postgres.quoting import identifier, literal

if TYPE_CHECKING:
    from clonepool.postgres.gateway import Gateway


async def refuse_prepared(gateway: Gateway, name: str) -> None:
    """Check that no prepared transaction is left in a database that is to become a generation.

    What it did would be in no clone, and the database could not be renamed, copied or dropped.

    Raises:
        TemplateFailedError: there is one; names it.
    """
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT gid FROM pg_prepared_xacts WHERE database = $1 ORDER BY prepared", name
        )
    if rows:
        raise TemplateFailedError(
            f"the prepared transaction {rows[0]['gid']!r} was left open",
            remedy="end it by COMMIT PREPARED or ROLLBACK PREPARED where the template is filled",
        )


async def clear(gateway: Gateway, name: str) -> list[str]:
    """Remove all of it; return what was found, for messages.

    If the database is closed and has prepared transactions or subscriptions, it is opened.

    Raises:
        StatementError, ServerUnavailableError: some of it may be left; this can be called again.
    """
    found = await _drop_slots(gateway, name)
    async with gateway.control() as session:
        (held,) = await session.rows(
            "SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = $1) AS prepared,"
            " EXISTS (SELECT FROM pg_subscription JOIN pg_database d ON d.oid = subdbid"
            "   WHERE datname = $1) AS subscribed,"
            " EXISTS (SELECT FROM pg_database WHERE datname = $1 AND NOT datallowconn) AS closed",
            name,
        )
    if held["closed"] and (held["prepared"] or held["subscribed"]):
        # Both can only be removed from within the database.
        await gateway.ddl(f"ALTER DATABASE {identifier(name)} WITH ALLOW_CONNECTIONS true")
    if held["prepared"]:
        found += await _roll_back_prepared(gateway, name)
    if held["subscribed"]:
        found += await _drop_subscriptions(gateway, name)
    return found


async def _drop_slots(gateway: Gateway, name: str) -> list[str]:
    async with gateway.control() as session:
        rows = await session.rows(
            "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = $1", name
        )
        for row in rows:
            if row["active_pid"] is not None:
                await session.rows("SELECT pg_terminate_backend($1)", row["active_pid"])
            await session.rows("SELECT pg_drop_replication_slot($1)", row["slot_name"])
    return [f"replication slot {row['slot_name']}" for row in rows]


async def _roll_back_prepared(gateway: Gateway, name: str) -> list[str]:
    """Roll back the prepared transactions of a database."""
    async with gateway.session(name) as session:
        rows = await session.rows("SELECT gid FROM pg_prepared_xacts WHERE database = $1", name)
        for row in rows:
            await session.execute(f"ROLLBACK PREPARED {literal(row['gid'])}")
    return [f"prepared transaction {row['gid']}" for row in rows]


async def _drop_subscriptions(gateway: Gateway, name: str) -> list[str]:
    """Drop a database's subscriptions, but not their slots at the publisher."""
    async with gateway.session(name) as session:
        rows = await session.rows(
            "SELECT subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid"
            " WHERE datname = $1",
            name,
        )
        for row in rows:
            subscription = identifier(row["subname"])
            await session.execute(f"ALTER SUBSCRIPTION {subscription} DISABLE")
            await session.execute(f"ALTER SUBSCRIPTION {subscription} SET (slot_name = NONE)")
            await session.execute(f"DROP SUBSCRIPTION {subscription}")
    return [f"subscription {row['subname']}" for row in rows]
