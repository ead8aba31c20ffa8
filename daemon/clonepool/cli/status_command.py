"""clonepool status: what the pools hold, and whether the daemon runs."""

from __future__ import annotations

import json
from typing import Any

import click

from clonepool import printable
from clonepool.cli import waiting
from clonepool.cli.options import Duration, json_option, socket_option

_UNDER_WAY = ("creating", "returned", "recycling", "dropping")


@click.command("status")
@click.option(
    "--wait",
    type=Duration(),
    default="0",
    help="How long to wait for the daemon to start, such as 30s; stops waiting when the start"
    " fails.",
)
@json_option
@socket_option
def command(*, wait: float, as_json: bool, socket_path: str | None) -> None:
    """Show what the pools hold, and the leases with their holders.

    Exits with 0 when the daemon answers. After `clonepool serve &`, wait for it with
    `clonepool status --wait 30s`.
    """
    with waiting.connect(socket_path, wait) as client:
        status = client.call("status")
        leases = client.call("leases")
    if as_json:
        click.echo(json.dumps({**status, "leases": leases}, indent=2))
    else:
        _print(status, leases)


def _print(status: dict[str, Any], leases: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Failures and labels are texts of others, and not to be read as markup.
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
        console.print("leases, oldest first:")
    for lease in leases:
        held = f"{lease['held_seconds']:.1f} s"
        said = f"  {lease['database']}  {held}  {lease['label']}"
        console.print(printable.line(said), soft_wrap=True)
