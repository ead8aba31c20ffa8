"""clonepool renew: let a lease taken with `clonepool acquire` last longer."""

from __future__ import annotations

import click

from clonepool.cli.options import Duration, lease_argument, socket_option
from clonepool.client import Client


@click.command("renew")
@lease_argument
@click.option("--ttl", type=Duration(), help="From now on. [default: as it was given]")
@socket_option
def command(token: str, ttl: float | None, socket_path: str | None) -> None:
    """Let a lease last longer; prints the seconds that it lasts now."""
    with Client(socket_path, name="renew") as client:
        seconds = client.call("renew", lease=token, ttl=ttl)["expires_in_seconds"]
    click.echo("for ever" if seconds is None else f"{seconds:g}")
