"""clonepool status: what the pools hold."""

from __future__ import annotations

import json
from typing import Any

import click

from clonepool import printable
from clonepool.cli.options import json_option, socket_option
from clonepool.client import Client

_UNDER_WAY = ("creating", "returned", "recycling", "dropping")


@click.command("status")
@json_option
@socket_option
def command(*, as_json: bool, socket_path: str | None) -> None:
    """Show what the pools hold and who holds what."""
    with Client(socket_path) as client:
        status = client.call("status")
        leases = client.call("leases")
    if as_json:
        click.echo(json.dumps({**status, "leases": leases}, indent=2))
    else:
        _print(status, leases)


def _print(status: dict[str, Any], leases: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Nothing here is markup: failures and labels are the words of others.
    console = Console(markup=False, highlight=False, emoji=False)
    server, clones = status["server"], status["clones"]
    console.print(
        f"instance {status['instance']}, PostgreSQL {server['version']} at {server['host']},"
        f" {clones['used']} of {clones['max']} clones"
    )
    if server["problem"]:
        console.print(printable.block(f"server: {server['problem']}"), style="red")
    if server["no_rewinds_because"]:
        said = f"clones are recreated, not rewound: {server['no_rewinds_because']}"
        console.print(printable.block(said))
    pools = Table(
        "template", "phase", "ready", "target", "leased", "under way", "waiting", "at most"
    )
    for pool in status["pools"]:
        under_way = sum(pool[state] for state in _UNDER_WAY)
        now = (pool["ready"], pool["target"], pool["leased"], under_way, pool["waiting"])
        counts = (*now, pool["max_clones"])
        pools.add_row(pool["template"], pool["phase"], *map(str, counts))
    console.print(pools)
    for pool in status["pools"]:
        for key in ("failure", "last_error", "limited_by", "recreated_because"):
            if pool[key]:
                said = f"{pool['template']}: {key.replace('_', ' ')}: {pool[key]}"
                console.print(printable.block(said))
    if leases:
        console.print("leases, the oldest first:")
    for lease in leases:
        held = f"{lease['held_seconds']:.1f} s"
        said = f"  {lease['database']}  {held}  {lease['label']}"
        console.print(printable.line(said), soft_wrap=True)
