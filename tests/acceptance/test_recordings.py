"""Replays of recordings of real daemons make the same decisions."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clonepool.core import events, recording
from clonepool.errors import ClonepoolError
from clonepool.postgres.embedded import cluster
from clonepool.postgres.embedded.server import MARKER
from support.daemons import CONFIG, Daemon, clean_up, eventually
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = CONFIG + CONFIG[CONFIG.index("[templates.blog]") :].replace("blog]", "shop]")


@contextmanager
def recorded_daemon() -> Iterator[tuple[Daemon, Path]]:
    """Run a daemon that records; return it and the file."""
    with open_directory() as directory:
        daemon, path = Daemon(directory, SECOND), directory / "run.jsonl"
        script = f'exec "{sys.executable}" -m clonepool "$@" --record "{path}"'
        daemon.program = ("sh", "-c", script, "sh")
        try:
            yield daemon.start(), path
        finally:
            clean_up(daemon)


def replayed(path: Path) -> list[list[type]]:
    """Replay a file, and return the kinds of events of each run in it."""
    lines = path.read_bytes().splitlines(keepends=True)
    found = recording.replay(lines)
    assert found.difference is None, found.difference
    runs: list[list[type]] = []
    for number, line in enumerate(lines, 1):
        if number in found.unread:
            continue
        record = recording.decode(line)
        if isinstance(record, recording.Beginning):
            runs.append([])
        else:
            runs[-1].append(type(record.event))
    assert found.events == sum(map(len, runs))
    return runs


def test_a_steady_run() -> None:
    with recorded_daemon() as (daemon, path):
        tokens = []
        with daemon.client() as client:
            for number in range(20):
                lease = client.lease("blog" if number % 3 else "shop", timeout=20)
                tokens.append(lease.token)
                if number % 5 == 0:
                    lease.reset()
                lease.release()
        assert daemon.stop() == 0
        (run,) = replayed(path)
        assert run.count(events.Acquire) == run.count(events.Release) == 20
        assert run.count(events.Reset) == 4
        assert run[-1] is not events.Stop, "what was parked is told after it"
        assert events.CloneParked in run[run.index(events.Stop) :]
        text = path.read_text()
        assert not [token for token in tokens if token in text]


def test_a_burst_of_many_clients_with_leases_of_every_kind() -> None:
    def work(daemon: Daemon, number: int) -> None:
        template = "blog" if number % 2 else "shop"
        with daemon.client() as client:
            client.call("reserve", template=template, tests=4, parallelism=2)
            for turn in range(4):
                kind = (number + turn) % 4
                try:
                    lease = client.lease(
                        template, timeout=0.2 if kind == 3 else 30.0,
                        ttl=30.0 if kind == 1 else None, fresh=kind == 2,
                    )  # fmt: skip
                except ClonepoolError:
                    continue  # refused in time, which is recorded too
                if kind == 1:
                    lease.renew(60.0)
                if turn < 3 or kind == 1:
                    lease.release(keep=number == 5)

    with recorded_daemon() as (daemon, path):
        with ThreadPoolExecutor(16) as threads:
            for done in [threads.submit(work, daemon, number) for number in range(16)]:
                done.result()
        daemon.pool()
        assert daemon.stop() == 0
        (run,) = replayed(path)
        assert run.count(events.Acquire) == 64
        for kind in (events.LeaseRecorded, events.Renew, events.HolderGone, events.Reserve):
            assert kind in run
        assert run.count(events.Keep) >= 1


def test_a_daemon_that_is_killed_and_the_next_that_takes_over() -> None:
    with recorded_daemon() as (daemon, path):
        with daemon.client() as client:
            kept = client.lease("blog", timeout=20, ttl=600.0)
        daemon.stop(signal.SIGKILL)
        daemon.start()
        with daemon.client() as client:
            client.call("renew", lease=kept.token, ttl=500.0)
            client.call("release", lease=kept.token)
        eventually(daemon.at_rest)
        assert daemon.stop() == 0
        first, second = replayed(path)
        assert events.Stop not in first
        assert second.index(events.FoundLeased) < second.index(events.TemplateReady)
        assert events.FoundUnknown in second
        assert events.Release in second
        assert kept.token not in path.read_text()


def test_a_server_that_is_lost_and_comes_back() -> None:
    with recorded_daemon() as (daemon, path):
        eventually(daemon.at_rest)
        marker = cluster.read_marker(daemon.state / MARKER)
        assert marker is not None
        postmaster = Path(marker.root) / "data" / "postmaster.pid"
        os.kill(int(postmaster.read_text().splitlines()[0]), signal.SIGKILL)
        eventually(lambda: bool(daemon.events("server.lost")))
        with daemon.client() as client:
            lease = client.lease("blog", timeout=30)
            lease.release()
        eventually(daemon.at_rest)
        assert daemon.stop() == 0
        (run,) = replayed(path)
        assert run.index(events.ServerLost) < run.index(events.ServerFound)
