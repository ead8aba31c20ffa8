"""The command line: one small file a command, imported when the command is called.

Imports that take long stay inside the function that needs them. What the commands show is made
elsewhere: a command asks the daemon and prints the answer.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from clonepool import descriptors, printable, resource_errors
from clonepool.errors import (
    AlreadyRunningError,
    CapabilityError,
    ClonepoolError,
    ConfigError,
)

COMMANDS = (
    "serve", "status", "exec", "acquire", "renew", "release", "drain", "templates", "build",
    "snapshot", "define", "demo", "replay",
)  # fmt: skip
_EXIT_CODES: dict[type[ClonepoolError], int] = {
    ConfigError: 2,
    CapabilityError: 2,
    AlreadyRunningError: 3,
}


_LONGEST_SUMMARY = 200
"""Characters of a command's first sentence that the list of commands shows: all of them."""


class _LazyGroup(click.Group):
    """Imports a command's file when the command is called, and shows whole sentences in --help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"clonepool.cli.{cmd_name}_command")
        command: Any = module.command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = ((name, self.get_command(ctx, name)) for name in COMMANDS)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, each.get_short_help_str(_LONGEST_SUMMARY)) for name, each in found if each]
            )


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clonepool")
def cli() -> None:
    """Pre-warmed PostgreSQL clones for tests, leased over a Unix socket."""


def main() -> None:
    """Run the command line; clonepool's own errors become one line and an exit code."""
    descriptors.open_standard()
    try:
        cli()
    except ClonepoolError as error:
        _fail(error)
    except Exception as error:
        short = resource_errors.told(
            error, "the machine is short of what this command needs", starting=True
        )
        if short is None:
            raise
        _fail(short)


def _fail(error: ClonepoolError) -> None:
    click.echo(f"clonepool: {printable.block(error.sentence())}", err=True)
    sys.exit(_EXIT_CODES.get(type(error), 1))
