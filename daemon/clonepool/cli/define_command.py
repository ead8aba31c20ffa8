"""clonepool define: have a template, and fill it by a command if nobody has done so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from clonepool import printable
from clonepool.cli.options import socket_option
from clonepool.client import Client


@click.command("define", context_settings={"ignore_unknown_options": True})
@click.argument("content", metavar="HASH")
@click.option("--name", metavar="NAME", help="How the template's name begins.  [default: made]")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long to wait for who fills it.")
@socket_option
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def command(
    content: str,
    name: str | None,
    timeout: float | None,
    socket_path: str | None,
    argv: tuple[str, ...],
) -> None:
    """Print the name of the template that HASH stands for.

    If there is none yet, CMD fills it, with DATABASE_URL and PG* set to an empty database, and its
    output goes to stderr. When CMD fails, nothing is made, and its exit code is ours.
    """
    with Client(socket_path, name=f"define {Path(argv[0]).name}") as client:
        definition = client.define(content, name=name, timeout=timeout)
        if not definition.filled:
            inherited = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
            env = {**inherited, **definition.env}
            try:
                code = subprocess.run(argv, env=env, stdout=sys.stderr, check=False).returncode
            except OSError as error:
                click.echo(f"clonepool: {printable.line(argv[0])}: {error.strerror}", err=True)
                code = 127
            if code:
                definition.abandon()
                sys.exit(code if code > 0 else 128 - code)
            definition.finalize()
    click.echo(definition.template)
