"""Runs `clonepool serve` in this process, and delays or kills it at named steps of its work.

    python -m support.kill_points after:record:1 before:record:1=0.5,before:drop:1=2 serve ...

The first argument says where the process kills itself, the second where a task is delayed, and by
how many seconds (`-` for nowhere): `before` or `after`, the name of the step, and the number of its
occurrence. A step ends when its effect on PostgreSQL is complete, before the pool knows of it.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from clonepool.cli import main as clonepool
from clonepool.postgres import databases
from clonepool.postgres.rewind.restore import Restore
from clonepool.postgres.rewind.rewinder import Rewinder
from clonepool.postgres.templates import build_steps
from clonepool.postgres.templates.build_steps import Steps
from clonepool.postgres.templates.client_generation import ClientGenerations
from clonepool.postgres.templates.generations import Generations
from clonepool.postgres.templates.psql import runner
from clonepool.service.dispatcher import Dispatcher
from clonepool.service.jobs import park
from clonepool.service.jobs.adopt import AdoptJob
from clonepool.service.jobs.create import CreateJob
from clonepool.service.jobs.drop import DropJob
from clonepool.service.jobs.leaks import Leaks
from clonepool.service.jobs.recycle import RecycleJob
from support.processes import run_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.daemons import Daemon
    from support.processes import Process

NOWHERE = "-"


@dataclass(frozen=True)
class Work:
    """A function that is a step, and which of its calls count."""

    owner: Any
    name: str
    applies: Callable[..., bool] = lambda *_, **__: True


def _writes(key: str, value: str) -> Callable[..., bool]:
    return lambda _gateway, _name, facts: facts.get(key) == value


def _of_build(_gateway: Any, _name: str, source: str, *_: object, **__: object) -> bool:
    return source == "template0"


def _of_generation(_gateway: Any, name: str, _source: str, *_: object, **__: object) -> bool:
    return "_b" in name and "_whole_" in name


def _of_clone(*arguments: Any, **options: Any) -> bool:
    return not _of_build(*arguments, **options)


WORK = {
    "grant": Work(Dispatcher, "_grant"),
    "refuse": Work(Dispatcher, "_refuse"),
    "renewed": Work(Dispatcher, "_renewed"),
    "notice": Work(Dispatcher, "_notify"),
    "record": Work(databases, "annotate", _writes("state", "leased")),
    "create": Work(CreateJob, "run_once"),
    "create.copy": Work(databases, "create", _of_clone),
    "sessions": Work(Leaks, "_sessions"),
    "recycle": Work(RecycleJob, "run"),
    "recycle.write": Work(RecycleJob, "_write_end"),
    "recycle.clean": Work(RecycleJob, "_rewind"),
    "rewind": Work(Rewinder, "rewind"),
    "rewind.restore": Work(Restore, "run"),
    "keep": Work(databases, "annotate", _writes("state", "kept")),
    "park": Work(park, "park"),
    "park.seal": Work(databases, "close"),
    "adopt": Work(AdoptJob, "_adopt"),
    "adopt.unseal": Work(databases, "unseal"),
    "drop": Work(DropJob, "run_once"),
    "build.create": Work(databases, "create", _of_build),
    "build.file": Work(runner, "run_file"),
    "build.copy": Work(databases, "create", _of_generation),
    "build.extension": Work(Steps, "_extend"),
    "build.dump": Work(Steps, "_restore"),
    "build.command": Work(build_steps, "run_command"),
    "build.settings": Work(Steps, "_set"),
    "made.empty": Work(ClientGenerations, "empty"),
    "made.copy": Work(ClientGenerations, "copy"),
    "made.finish": Work(ClientGenerations, "finish"),
    "build.freeze": Work(Generations, "_freeze"),
    "build.annotate": Work(databases, "annotate", _writes("kind", "generation")),
    "build.seal": Work(databases, "seal"),
    "build.rename": Work(databases, "rename"),
}


def die() -> None:
    """Kill this process by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(point: str, seconds: float | None = None) -> None:
    """Arrange that the process is killed at that point, or delayed by some seconds."""
    when, name, number = point.split(":")
    work = WORK[name]
    function = getattr(work.owner, work.name)
    left = int(number)

    def is_reached(arguments: tuple[object, ...], options: dict[str, object]) -> bool:
        nonlocal left
        applies = work.applies(*arguments, **options)
        left -= applies
        return applies and left == 0

    @functools.wraps(function)
    async def slow(*arguments: Any, **options: Any) -> Any:
        reached = is_reached(arguments, options)
        if reached and when == "before":
            await _stop(seconds)
        result = await function(*arguments, **options)
        if reached and when == "after":
            await _stop(seconds)
        return result

    @functools.wraps(function)
    def quick(*arguments: Any, **options: Any) -> Any:
        reached = is_reached(arguments, options)
        if reached and when == "before":
            die()
        result = function(*arguments, **options)
        if reached and when == "after":
            die()
        return result

    setattr(work.owner, work.name, slow if inspect.iscoroutinefunction(function) else quick)


async def _stop(seconds: float | None) -> None:
    if seconds is None:
        die()
    else:
        await anyio.sleep(seconds)  # sleeps: it is to be late


def spawn(daemon: Daemon, killed_at: str, late: str = NOWHERE) -> Process:
    """Start this program in place of the daemon's own process."""
    daemon.lay_down_cluster()
    with daemon.log.open("ab") as log:
        return run_module("support.kill_points", [killed_at, late, *daemon.arguments], log.fileno())


def main() -> None:
    """Run the command line with the interrupts of the first two arguments."""
    _, killed_at, late, *command = sys.argv
    if killed_at != NOWHERE:
        interrupt(killed_at)
    for point, _, seconds in (entry.partition("=") for entry in late.split(",") if late != NOWHERE):
        interrupt(point, float(seconds))
    sys.argv = ["clonepool", *command]
    clonepool()


if __name__ == "__main__":
    main()
