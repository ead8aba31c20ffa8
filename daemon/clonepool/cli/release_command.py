"""clonepool release: give back a lease taken with `clonepool acquire`."""

from __future__ import annotations

import click

from clonepool import printable
from clonepool.cli.options import lease_argument, socket_option
from clonepool.client import Client


@click.command("release")
@lease_argument
@click.option("--keep", is_flag=True, help="Set the clone aside, to be looked into.")
@socket_option
def command(token: str, *, keep: bool, socket_path: str | None) -> None:
    """Give a lease back; its token is what `acquire` put into CLONEPOOL_LEASE.

    Waits until it is known which sessions were left open and what was changed in the server, and
    says so.
    """
    with Client(socket_path, name="release") as client:
        ended = client.call("release", lease=token, keep=keep, report=True)
    for session in ended["leaked"] or []:
        if session["what"]:
            said = f"clonepool: it changed the server: {session['what']}"
            click.echo(printable.line(said), err=True)
            continue
        said = (
            f"clonepool: ended a session that was still open: pid {session['pid']}"
            f" {session['application_name']} ({session['state']}): {session['query']}"
        )
        click.echo(printable.line(said), err=True)
    if keep:
        seconds = ended["kept_seconds"]
        until = f"for {seconds:g} s" if seconds else "until the daemon stops"
        click.echo(f"kept {ended['kept']} {until}")
