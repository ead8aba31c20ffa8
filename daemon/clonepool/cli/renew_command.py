"""clonepool renew: extend a lease taken with `clonepool acquire`."""

from __future__ import annotations

import click

from clonepool.cli.options import Duration, lease_argument, socket_option
from clonepool.client import Client


@click.command("renew")
@lease_argument
@click.option(
    "--ttl",
    type=Duration(),
    help="Time from now after which the lease ends.  [default: that of its acquire]",
)
@socket_option
def command(token: str, ttl: float | None, socket_path: str | None) -> None:
    """Extend a lease, and print how many seconds it lasts now."""
    with Client(socket_path, name="renew") as client:
        seconds = client.call("renew", lease=token, ttl=ttl)["expires_in_seconds"]
    click.echo("unlimited" if seconds is None else f"{seconds:g}")
