"""PostgreSQL hangs: releases are answered all the same."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clonepool.postgres.embedded import cluster
from clonepool.postgres.embedded.server import MARKER
from support.daemons import eventually
from support.outages import halted
from support.raw_connection import RawConnection

if TYPE_CHECKING:
    from support.daemons import Daemon

UNKNOWN = {"leaked": None, "kept": None, "kept_seconds": None}


def processes_of(daemon: Daemon) -> list[int]:
    """Return all processes of the embedded server, the one that starts the others first."""
    marker = cluster.read_marker(daemon.state / MARKER)
    assert marker is not None
    pid = int((Path(marker.root) / "data" / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *map(int, children.split())]


def acquire(lines: RawConnection, **options: object) -> dict[str, Any]:
    lines.send("acquire", "acquire", template="blog", timeout=30, **options)
    granted: dict[str, Any] = lines.receive()["result"]
    return granted


def test_a_release_is_answered_though_the_server_answers_nothing(daemon: Daemon) -> None:
    with contextlib.closing(RawConnection(daemon.socket)) as lines:
        bound, lasting, reported = acquire(lines), acquire(lines, ttl=60), acquire(lines)
        eventually(lambda: daemon.pool()["ready"] >= 3)
        eventually(lambda: not daemon.pool()["creating"])
        with halted(*processes_of(daemon)):
            began = time.monotonic()
            lines.send(3, "release", lease=reported["lease"], report=True)
            lines.send(1, "release", lease=bound["lease"])
            lines.send(2, "release", lease=lasting["lease"])
            lines.send("next", "acquire", template="blog", timeout=30)
            answers = [lines.receive() for _ in range(3)]
            assert [answer["id"] for answer in answers] == [1, 2, "next"]
            assert [answer["result"] for answer in answers[:2]] == [UNKNOWN, UNKNOWN]
            late = lines.receive()
            assert (late["id"], late["result"]) == (3, UNKNOWN)
            assert time.monotonic() - began < 15, "a report has its deadline"
        lines.send(4, "release", lease=answers[2]["result"]["lease"])
        assert lines.receive()["id"] == 4
        eventually(daemon.at_rest, 30)
        lines.send(5, "ping")
        assert lines.receive()["id"] == 5, "nothing is reported about an unknown lease"
