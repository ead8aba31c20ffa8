"""clonepool acquire: a lease for a shell, named by its token alone."""

from __future__ import annotations

import json
from typing import Any

import click

from clonepool.cli import shell
from clonepool.cli.options import Duration, socket_option, timeout_option
from clonepool.client import Client

_OTHER_FORMATS = ("json", "url")


class _EvalCommand(click.Command):
    """A command whose output is for eval, wrong options included."""

    def make_context(
        self, info_name: str | None, args: list[str], *others: Any, **extra: Any
    ) -> click.Context:
        formats = {each.removeprefix("--format=") for each in args}
        try:
            return super().make_context(info_name, args, *others, **extra)
        except click.UsageError:
            if formats.isdisjoint(_OTHER_FORMATS):
                _print_nothing_leased()
            raise


@click.command("acquire", cls=_EvalCommand)
@click.option("-t", "--template", required=True, metavar="NAME", help="Template to lease.")
@click.option(
    "--ttl",
    type=Duration(),
    default="10m",
    show_default=True,
    help="Time after which the lease ends, such as 90, 30s or 2h.",
)
@timeout_option
@click.option("--label", default="", help="Name of the holder, shown by `clonepool status`.")
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
    r"""Lease a clone until it is released or its time is over.

    The lease outlives this command, and the daemon. In a shell:

    \b
        eval "$(clonepool acquire -t blog --ttl 10m)" || exit
        psql
        eval "$(clonepool release)"

    When no lease can be had, eval fails, and unsets the variables of an earlier lease.
    """
    try:
        with Client(socket_path, name="acquire") as client:
            lease = client.lease(template, timeout=timeout, ttl=ttl, label=label or None)
    except BaseException:
        if shape == "env":
            _print_nothing_leased()
        raise
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
        shell.print_exports(lease.env, lease.token)


def _print_nothing_leased() -> None:
    shell.print_unset()
    shell.print_failure()
