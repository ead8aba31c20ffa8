"""clonepool build: build a template unless it is up to date, and show the progress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from clonepool import printable
from clonepool.cli.options import socket_option
from clonepool.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_SECONDS = 0.2
"""Seconds between two looks at the template's state with --watch."""


@click.command("build")
@click.argument("template", metavar="NAME")
@click.option("--anew", is_flag=True, help="Build it although no change is seen.")
@click.option(
    "--watch", is_flag=True, help="Then continue, and report each build that an edit causes."
)
@socket_option
def command(template: str, *, anew: bool, watch: bool, socket_path: str | None) -> None:
    """Build a template unless it is up to date, and print the seconds of each step.

    While another build of it is under way, shows that build's progress first.
    """
    _build(template, socket_path, anew=anew)
    if watch:
        _watch(template, socket_path)


def _build(template: str, socket_path: str | None, *, anew: bool) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    console = Console(stderr=True, markup=False, emoji=False)
    steps = Steps(lambda line: console.print(line, highlight=False), time.monotonic)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(template, total=None)

        def heard(_: str, news: dict[str, Any]) -> None:
            what = printable.line(news["what"])
            steps.begin(what)
            done = news["step"] - 1
            bar.update(task, description=what, total=news["steps"], completed=done)

        with Client(socket_path, on_notification=heard) as client:
            done = client.call("build", template=template, anew=anew or None, progress=True)
        steps.end()
    how = "up to date" if done["reused"] else "built"
    click.echo(f"{template}: {how} as {done['generation']}, {done['seconds']:.2f} s")


def _watch(template: str, socket_path: str | None) -> None:
    """Report each change of the template's state, until interrupted."""
    told = None
    with Client(socket_path) as client:
        while True:
            (found,) = [t for t in client.call("templates") if t["template"] == template]
            state = found["phase"], found["failure"] or found["generation"]
            if told is not None and state != told:
                click.echo(printable.block(f"{template}: {' '.join(state)}"))
            told = state
            time.sleep(_POLL_SECONDS)


class Steps:
    """Prints each step with its seconds when it is over.

    The seconds are those since the step was heard of. The daemon's own count from the beginning of
    a build, and steps of two builds may be heard of one after the other.

    Args:
        show: prints a line.
        clock: seconds that only increase.
    """

    def __init__(self, show: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._show = show
        self._clock = clock
        self._what = ""
        self._began = 0.0

    def begin(self, what: str) -> None:
        """End the step before, if there is one, and begin another."""
        self.end()
        self._what, self._began = what, self._clock()

    def end(self) -> None:
        """Print the step that is under way, if there is one."""
        if self._what:
            self._show(f"{self._clock() - self._began:8.3f} s  {self._what}")
        self._what = ""
