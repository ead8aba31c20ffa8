"""The commands, one small file each. Heavy imports stay inside the command that needs them."""

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


class _LazyGroup(click.Group):
    """Imports a command's file when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"clonepool.cli.{cmd_name}_command")
        command: Any = module.command
        return command if isinstance(command, click.Command) else None


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clonepool")
def cli() -> None:
    """Warm PostgreSQL clones for tests, leased over a Unix socket."""


def main() -> None:
    """Run the command line; our own errors become one line and an exit code."""
    descriptors.open_standard()
    try:
        cli()
    except ClonepoolError as error:
        _fail(error)
    except Exception as error:
        short = resource_errors.told(
            error, "the machine has no more of what this takes", starting=True
        )
        if short is None:
            raise
        _fail(short)


def _fail(error: ClonepoolError) -> None:
    click.echo(f"clonepool: {printable.block(error.sentence())}", err=True)
    sys.exit(_EXIT_CODES.get(type(error), 1))
