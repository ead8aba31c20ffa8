"""clonepool build: build a template unless it is up to date, and show how far it is."""

from __future__ import annotations

import time
from typing import Any

import click

from clonepool import printable
from clonepool.cli.options import socket_option
from clonepool.client import Client

LOOK_SECONDS = 0.2


@click.command("build")
@click.argument("template", metavar="NAME")
@click.option("--anew", is_flag=True, help="Build although nothing is seen to have changed.")
@click.option("--watch", is_flag=True, help="Then report every build that an edit causes.")
@socket_option
def command(template: str, *, anew: bool, watch: bool, socket_path: str | None) -> None:
    """Build a template unless it is up to date, with the time of each step."""
    _build(template, socket_path, anew=anew)
    if watch:
        _watch(template, socket_path)


def _build(template: str, socket_path: str | None, *, anew: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True, markup=False, emoji=False)
    steps = _Steps(console)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(template, total=None)

        def heard(_: str, news: dict[str, Any]) -> None:
            what = printable.line(news["what"])
            steps.begin(what, news["seconds"])
            done = news["step"] - 1
            bar.update(task, description=what, total=news["steps"], completed=done)

        with Client(socket_path, on_notification=heard) as client:
            done = client.call("build", template=template, anew=anew or None, progress=True)
        steps.end(done["seconds"])
    how = "up to date" if done["reused"] else "built"
    click.echo(f"{template}: {how} as {done['generation']}, {done['seconds']:.2f} s")


def _watch(template: str, socket_path: str | None) -> None:
    """Tell each change of the template's state, until interrupted."""
    told = None
    with Client(socket_path) as client:
        while True:
            (found,) = [t for t in client.call("templates") if t["template"] == template]
            state = found["phase"], found["failure"] or found["generation"]
            if told is not None and state != told:
                click.echo(printable.block(f"{template}: {' '.join(state)}"))
            told = state
            time.sleep(LOOK_SECONDS)


class _Steps:
    """Prints each step with its seconds, when it is over."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._what = ""
        self._began = 0.0

    def begin(self, what: str, seconds: float) -> None:
        self.end(seconds)
        self._what, self._began = what, seconds

    def end(self, seconds: float) -> None:
        if self._what:
            self._console.print(f"{seconds - self._began:8.3f} s  {self._what}", highlight=False)
        self._what = ""
