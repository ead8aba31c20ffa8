"""clonepool define: the template for a digest, filled by a command unless it exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from clonepool import printable
from clonepool.cli.options import Duration, socket_option
from clonepool.client import Client


class _DefineCommand(click.Command):
    """Takes options before and after HASH; everything after them is CMD, with or without `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = self._first_word(ctx, args)
        before, content, after = args[:at], args[at : at + 1], args[at + 1 :]
        if "--" not in before:
            begins = self._first_word(ctx, after)
            args = [*before, *after[:begins], *content, *after[begins:]]
        return super().parse_args(ctx, args)

    def _first_word(self, ctx: click.Context, args: list[str]) -> int:
        """Return the position of what is neither an option nor an option's value, or the end."""
        found, _, _ = self.make_parser(ctx).parse_args(list(args))
        content, argv = found["content"], found["argv"]  # click has a value of its own for neither
        further = len(argv) if isinstance(argv, (tuple, list)) else 0
        return len(args) - further - isinstance(content, str)


@click.command("define", cls=_DefineCommand, context_settings={"allow_interspersed_args": False})
@click.argument("content", metavar="HASH")
@click.option("--name", metavar="NAME", help="Prefix of the template's name.  [default: made]")
@click.option(
    "--timeout",
    type=Duration(),
    help="Time to wait for the client that fills the template, such as 90 or 10m."
    "  [default: the daemon's acquire_timeout]",
)
@socket_option
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD...")
def command(
    content: str,
    name: str | None,
    timeout: float | None,
    socket_path: str | None,
    argv: tuple[str, ...],
) -> None:
    """Print the name of the template for HASH, filled by CMD if it does not exist yet.

    CMD runs with DATABASE_URL and PG* set to an empty database; its output goes to stderr. When it
    fails, no template is made, and its exit code is the exit code of this command.
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
