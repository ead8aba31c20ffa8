"""Fills a template by running a user's program, such as a migration tool or a seeding script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool.errors import TemplateFailedError
from clonepool.postgres import programs
from clonepool.postgres.redaction import hide, hide_in_command

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.config import CommandSection
    from clonepool.postgres.endpoint import Endpoint

_SHORTEST_SECRET = 8
"""Least length of a value in `env` that is hidden; shorter ones are words that occur elsewhere."""


async def run_command(
    section: CommandSection, endpoint: Endpoint, database: str, directory: Path, *, seconds: float
) -> None:
    """Run a command in the daemon's environment, with variables for connecting added.

    Args:
        section: the command, its directory and its environment.
        endpoint: of the server, and the role to log in as.
        database: that the command fills.
        directory: to which paths are relative.
        seconds: time limit.

    Raises:
        TemplateFailedError: it failed; says how, with the end of its output.
    """
    line = section.run if isinstance(section.run, str) else " ".join(section.run)
    secrets = [value for value in section.env.values() if len(value) >= _SHORTEST_SECRET]
    shown = hide(hide_in_command(line), secrets)
    variables = endpoint.env(database)
    done = await programs.run(
        section.run,
        env={
            **programs.inherited(),
            "PGAPPNAME": "clonepool",
            **variables,
            section.variable: variables["DATABASE_URL"],
            **section.env,
        },
        directory=directory / section.directory,
        seconds=seconds,
        what=f"command {shown!r}",
        secrets=secrets,
    )
    if done.code:
        how = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
        raise TemplateFailedError(
            f"command {shown!r} failed with {how}; its last output: {done.output}",
            remedy=f"run it by hand in {directory / section.directory}",
        )
