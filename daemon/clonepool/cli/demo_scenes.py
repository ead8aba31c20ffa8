"""What the demo shows: isolation, then latencies compared with those of a plain CREATE DATABASE."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from clonepool.errors import ClonepoolError
from clonepool.postgres import databases
from clonepool.postgres.endpoint import from_url
from clonepool.postgres.gateway import Gateway
from clonepool.postgres.quoting import identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clonepool.client import Client, Lease

_COUNT = "SELECT count(*) FROM blog.tb_user"
_INSERT = (
    "INSERT INTO blog.tb_user (username, email, password_hash)"
    " VALUES ('visitor', 'visitor@example.org', 'x')"
)
_PLAIN_ROUNDS = 20
_MILLISECOND = 1e-3
_BUSY = ("creating", "recycling", "dropping")

console = Console(highlight=False, markup=False)


async def play(client: Client, template: str, leases: int) -> None:
    """Show isolation, lease `leases` times, and print the table.

    Raises:
        ClonepoolError: a clone showed a row that was inserted into another one.
    """
    await _show_isolation(client, template)
    acquires, first_rows = await _lease_often(client, template, leases)
    creates, plain_rows = await _create_plainly(client, template)
    table = Table(f"{leases} leases, each when the pool is at rest", "median", "p99")
    table.add_row("acquire", *_cells(acquires))
    table.add_row("acquire, connect, first row", *_cells(first_rows))
    table.add_row("plain CREATE DATABASE … TEMPLATE", *_cells(creates))
    table.add_row("the same, connect, first row", *_cells(plain_rows))
    console.print(table)
    console.print(
        f"An acquire is {_median(creates) / _median(acquires):.0f} times quicker than a plain"
        f" CREATE DATABASE, the first row {_median(plain_rows) / _median(first_rows):.1f} times;"
        " and no database has to be dropped by hand."
    )


async def _show_isolation(client: Client, template: str) -> None:
    with client.lease(template) as one, client.lease(template) as other:
        before = await _value(one, _COUNT)
        await _value(one, f"{_INSERT} RETURNING id")
        after, elsewhere = await _value(one, _COUNT), await _value(other, _COUNT)
    with client.lease(template) as later:
        fresh = await _value(later, _COUNT)
    console.print(f"  {one.database}: {before} users, then one more is inserted: {after}")
    console.print(f"  {other.database}, leased beside it: {elsewhere}")
    console.print(f"  {later.database}, cloned from the same template: {fresh}")
    if (after, elsewhere, fresh) != (before + 1, before, before):
        raise ClonepoolError("a clone saw another clone's row")


async def _lease_often(
    client: Client, template: str, leases: int
) -> tuple[list[float], list[float]]:
    """Time leases; between two of them the pool comes to rest, as it does while a test runs."""
    acquires, first_rows = [], []
    for _ in range(leases):
        _await_rest(client, template)
        began = time.perf_counter()
        lease = client.lease(template)
        acquires.append(time.perf_counter() - began)
        await _value(lease, _COUNT)
        first_rows.append(time.perf_counter() - began)
        lease.release()
    return acquires, first_rows


async def _create_plainly(client: Client, template: str) -> tuple[list[float], list[float]]:
    """Time what the daemon does in advance, done by hand: copy the template, connect, drop."""
    creates, first_rows = [], []
    with client.lease(template) as lease:
        gateway = Gateway(from_url(lease.url), "clonepool demo")
        source = await _generation_database(gateway, lease)
        _await_rest(client, template)
        for number in range(_PLAIN_ROUNDS):
            name = f"clonepool_demo_{number}"
            began = time.perf_counter()
            await gateway.ddl(f"CREATE DATABASE {name} TEMPLATE {identifier(source)}")
            creates.append(time.perf_counter() - began)
            async with gateway.session(name) as session:
                await session.value(_COUNT)
            first_rows.append(time.perf_counter() - began)
            await databases.drop(gateway, name)
        await gateway.close()
    return creates, first_rows


async def _generation_database(gateway: Gateway, lease: Lease) -> str:
    async with gateway.control() as session:
        name: str = await session.value(
            "SELECT datname FROM pg_database WHERE datistemplate AND datname LIKE $1",
            f"%\\_{lease.template}\\_{lease.generation}\\_t%",
        )
    return name


async def _value(lease: Lease, sql: str) -> int:
    async with Gateway(from_url(lease.url), "clonepool demo").session(lease.database) as session:
        number: int = await session.value(sql)
    return number


def _await_rest(client: Client, template: str) -> None:
    while True:
        (pool,) = (p for p in client.call("status")["pools"] if p["template"] == template)
        if pool["ready"] >= pool["min_ready"] and not any(pool[state] for state in _BUSY):
            return
        time.sleep(0.002)


def _cells(seconds: Sequence[float]) -> tuple[str, str]:
    return _shown(_median(seconds)), _shown(sorted(seconds)[int(len(seconds) * 0.99)])


def _median(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


def _shown(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < _MILLISECOND else f"{seconds * 1e3:.1f} ms"
