"""What is left after a run: on the server, in the daemon, and in the process table."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.daemon import TEMPLATES

if TYPE_CHECKING:
    from soak.daemon import SoakDaemon
    from soak.journal import Journal

REST_SECONDS = 90.0
_BUSY = ("creating", "leased", "returned", "recycling", "dropping", "kept", "parked", "waiting")
_NAME = re.compile(
    r"cp_soak_(?P<template>[a-z]+)_[a-z2-7]{8}_(?P<kind>[tbcr])[0-9a-z]+_[a-z2-7]{8}"
)
_KINDS = {"t": "generations", "c": "clones", "b": "others", "r": "references"}


def await_rest(daemon: SoakDaemon) -> bool:
    """Wait until every lease has ended, every pool is full and no job runs."""
    deadline = time.monotonic() + REST_SECONDS
    while time.monotonic() < deadline:
        pools = daemon.ask("status")["pools"]
        if all(p["ready"] >= p["min_ready"] and not any(p[b] for b in _BUSY) for p in pools):
            return True
        time.sleep(0.05)
    return False


def look(daemon: SoakDaemon, journal: Journal, when: str) -> set[str]:
    """Record what exists at rest, and return the names of the clones."""
    if not await_rest(daemon):
        journal.write("broken", why=f"no rest within {REST_SECONDS:g} s", at=daemon.ask("status"))
    databases, roles, prepared, sessions = daemon.queries(
        r"SELECT datname AS name FROM pg_database WHERE datname LIKE 'cp\_%'",
        r"SELECT rolname AS name FROM pg_roles WHERE rolname LIKE 'cp\_%'",
        "SELECT gid AS name FROM pg_prepared_xacts",
        "SELECT concat_ws(' ', datname, application_name, state, query) AS name"
        " FROM pg_stat_activity WHERE backend_type = 'client backend'"
        r" AND (datname LIKE 'cp\_%' OR application_name LIKE 'soak-%')"
        # Sessions of the running daemon are no leftovers: some of them stay on clones.
        f" AND application_name NOT LIKE 'clonepool % pid={daemon.pid} %'",
    )
    names = [row["name"] for row in databases]
    ready = {pool["template"]: pool["ready"] for pool in daemon.ask("status")["pools"]}
    journal.write(
        "leftovers",
        at=when,
        leases=daemon.ask("leases"),
        sessions=[row["name"] for row in sessions],
        prepared=[row["name"] for row in prepared],
        strangers=[name for name in names if _NAME.fullmatch(name) is None],
        databases=_count(names),
        roles={name: sum(kinds.values()) for name, kinds in _count([r[0] for r in roles]).items()},
        templates={name: {"ready": ready[name]} for name in TEMPLATES},
        names=names,
    )
    return {name for name in names if _matches(name, "c")}


def look_for_processes(daemon: SoakDaemon, journal: Journal, storage: Path) -> None:
    """Record which processes of the run are left, after some seconds for them to end."""
    deadline = time.monotonic() + 10.0
    while (left := _processes(daemon.directory, storage)) and time.monotonic() < deadline:
        time.sleep(0.05)
    journal.write("processes_left", processes=left, socket=daemon.socket.exists())


def _count(names: list[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for name in names:
        if found := _NAME.fullmatch(name):
            template = dict.fromkeys(_KINDS.values(), 0)
            counts.setdefault(found["template"], template)[_KINDS[found["kind"]]] += 1
    return counts


def _matches(name: str, kind: str) -> bool:
    found = _NAME.fullmatch(name)
    return found is not None and found["kind"] == kind


def _processes(directory: Path, storage: Path) -> list[Any]:
    """Return the processes of this soak, found by command line or working directory."""
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = (entry / "cwd").readlink()
            if str(directory) in command or str(storage) in command or storage in place.parents:
                left.append([int(entry.name), command])
    return left
