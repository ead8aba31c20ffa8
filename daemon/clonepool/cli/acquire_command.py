"""clonepool acquire: a lease for a shell, held by its token alone."""

from __future__ import annotations

import json
import shlex

import click

from clonepool.cli.options import Duration, socket_option
from clonepool.client import Client


@click.command("acquire")
@click.option("-t", "--template", required=True, metavar="NAME", help="Template to lease.")
@click.option("--ttl", type=Duration(), default="10m", show_default=True, help="How long it lasts.")
@click.option("--timeout", type=Duration(), help="How long to wait for a clone.")
@click.option("--label", default="", help="What is shown to people as the holder.")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["env", "json", "url"]),
    default="env",
    show_default=True,
    help="env: lines for a shell's eval.",
)
@socket_option
def command(
    template: str,
    ttl: float,
    timeout: float | None,
    label: str,
    shape: str,
    socket_path: str | None,
) -> None:
    """Lease a clone that lasts until it is released or its time is over.

    The lease outlives this command, and the daemon. In a shell:

        eval "$(clonepool acquire -t blog --ttl 10m)"; psql; clonepool release
    """
    with Client(socket_path, name="acquire") as client:
        lease = client.lease(template, timeout=timeout, ttl=ttl, label=label or None)
    if shape == "url":
        click.echo(lease.url)
    elif shape == "json":
        known = {
            "lease": lease.token,
            "database": lease.database,
            "url": lease.url,
            "env": lease.env,
            "expires_in_seconds": lease.expires_in_seconds,
        }
        click.echo(json.dumps(known, indent=2))
    else:
        for key, value in {**lease.env, "CLONEPOOL_LEASE": lease.token}.items():
            click.echo(f"export {key}={shlex.quote(value)}")
