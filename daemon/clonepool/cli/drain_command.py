"""clonepool drain: grant no new leases, and wait until those that are held have ended."""

from __future__ import annotations

import sys

import click

from clonepool.cli.options import Duration, socket_option
from clonepool.client import Client


@click.command("drain")
@click.argument("template", required=False)
@click.option("--off", is_flag=True, help="Grant leases again.")
@click.option(
    "--timeout",
    type=Duration(),
    default="0",
    show_default=True,
    help="Time to wait until no lease is held, such as 90 or 10m.",
)
@socket_option
def command(template: str | None, *, off: bool, timeout: float, socket_path: str | None) -> None:
    """Stop granting leases of TEMPLATE, or of all templates.

    Exits with 1 while leases are still held.
    """

    def tell(_: str, params: dict[str, int]) -> None:
        click.echo(f"waiting for {params['leases']} leases", err=True)

    with Client(socket_path, name="drain", on_notification=tell) as client:
        left = client.call("drain", template=template, off=off, timeout=timeout, progress=True)
    click.echo(f"{left['leases']} leases are held")
    sys.exit(1 if left["leases"] and not off else 0)
