"""A template filled by a program of the user's: a migration tool, a seeding script."""

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
"""Characters: shorter values in `env` are switches, and words that occur elsewhere."""


async def run_command(
    section: CommandSection, endpoint: Endpoint, database: str, directory: Path, *, seconds: float
) -> None:
    """Run it in the environment of the daemon, with where to connect added.

    Args:
        section: what to run, where, and with what in its environment.
        endpoint: of the server, and as whom it is to log in.
        database: that it is to fill.
        directory: where relative paths begin.
        seconds: how long it may take.

    Raises:
        TemplateFailedError: it failed; says how, and the last of what it said.
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
            f"command {shown!r} failed with {how}, and said last: {done.output}",
            remedy=f"run it by hand in {directory / section.directory}",
        )
