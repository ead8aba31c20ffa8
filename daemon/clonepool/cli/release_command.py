"""clonepool release: give back a lease taken with `clonepool acquire`."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from clonepool import printable
from clonepool.cli import shell
from clonepool.cli.options import lease_argument, socket_option
from clonepool.client import Client
from clonepool.errors import NotYourLeaseError


@click.command("release")
@lease_argument
@click.option("--keep", is_flag=True, help="Keep the clone for inspection.")
@socket_option
@click.pass_context
def command(ctx: click.Context, token: str, *, keep: bool, socket_path: str | None) -> None:
    """Give a lease back; LEASE is its token, which `acquire` puts into CLONEPOOL_LEASE.

    When the token comes from that variable, prints a line for eval that unsets the variables of
    the lease:

    \b
        eval "$(clonepool release)"

    Waits for the report of sessions left open and changes made to the server, and prints it.
    """  # noqa: D301 - click reads the mark \b
    for_eval = ctx.get_parameter_source("token") is ParameterSource.ENVIRONMENT
    try:
        with Client(socket_path, name="release") as client:
            ended = client.call("release", lease=token, keep=keep, report=True)
    except BaseException as error:
        if for_eval:
            if isinstance(error, NotYourLeaseError):
                shell.print_unset()
            shell.print_failure()
        raise
    _report(ended["leaked"] or [])
    if keep:
        seconds = ended["kept_seconds"]
        until = f"for {seconds:g} s" if seconds else "until the daemon stops"
        click.echo(f"kept {ended['kept']} {until}", err=for_eval)
    if for_eval:
        shell.print_unset()


def _report(leaked: list[dict[str, Any]]) -> None:
    """Say what the lease left, on stderr."""
    for left in leaked:
        if left["what"]:
            said = f"clonepool: the lease changed the server: {left['what']}"
        else:
            said = (
                f"clonepool: ended a session that was still open: pid {left['pid']}"
                f" {left['application_name']} ({left['state']}): {left['query']}"
            )
        click.echo(printable.line(said), err=True)
