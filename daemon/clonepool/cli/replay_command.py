"""clonepool replay: check that a recorded run leads to the same decisions again."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("replay")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(file: Path) -> None:
    """Replay a recording made by `serve --record FILE`.

    Exits with 1 at the first decision that differs from the recorded one, and shows both.
    """
    from clonepool.core import recording
    from clonepool.errors import BadRequestError

    with file.open("rb") as lines:
        try:
            found = recording.replay(lines)
        except ValueError as error:
            raise BadRequestError(f"{file} is not a recording: {error}") from error
    for line in found.unread:
        click.echo(f"line {line} is not whole, and was skipped", err=True)
    difference = found.difference
    if difference is None:
        click.echo(f"{found.events} events of {found.runs} runs: every decision is the same")
        return
    click.echo(
        f"line {difference.line} is decided differently\n"
        f"event:    {difference.event}\n"
        f"recorded: {difference.recorded or 'nothing more'}\n"
        f"replayed: {difference.replayed or 'nothing more'}"
    )
    sys.exit(1)
