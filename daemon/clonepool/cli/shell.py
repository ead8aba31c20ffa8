"""Lines for a shell's eval: what `acquire` prints, and what takes it back.

The status of `eval "$(command)"` is that of the last line that the command printed, not the
command's own; of no lines it is 0. So a command that fails prints a line that fails.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

LEASE_VARIABLE = "CLONEPOOL_LEASE"
_VARIABLES = (
    "DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", LEASE_VARIABLE,
)  # fmt: skip


def print_exports(env: Mapping[str, str], token: str) -> None:
    """Print lines that set the variables of a lease."""
    for key, value in {**env, LEASE_VARIABLE: token}.items():
        click.echo(f"export {key}={shlex.quote(value)}")


def print_unset() -> None:
    """Print a line that unsets the variables of any lease."""
    click.echo(f"unset {' '.join(_VARIABLES)}")


def print_failure() -> None:
    """Print a line that makes eval fail and leaves all variables as they are."""
    click.echo("false")
