"""clonepool snapshot: make a template from the present state of a leased clone."""

from __future__ import annotations

import click

from clonepool.cli.options import socket_option
from clonepool.client import Client


@click.command("snapshot")
@click.argument("lease", metavar="LEASE")
@click.argument("template", metavar="NAME")
@click.option("--end-sessions", is_flag=True, help="End the sessions that are open on the clone.")
@socket_option
def command(lease: str, template: str, *, end_sessions: bool, socket_path: str | None) -> None:
    """Make the template NAME from the present state of a leased clone; the lease continues.

    LEASE is the lease's token.
    """
    with Client(socket_path) as client:
        made = client.call(
            "snapshot", lease=lease, template=template, end_sessions=end_sessions or None
        )
    click.echo(f"{template}: made as {made['generation']}, {made['seconds']:.2f} s")
