"""`make compare BASE=revision`: this tree compared with an earlier one in one run, as ratios.

Two daemons run at the same time, one of each tree, on servers of their own. One client of this tree
uses them in turn, in rounds of changing order, so that load on the machine affects both alike. Only
the ratios are meaningful.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import asyncpg

from bench import formats, peers
from bench.samples import middle, quantile
from clonepool.client import Client
from clonepool.postgres.embedded.server import discard

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.client import Lease

ROOT = Path(__file__).parent.parent
CLONES = 20
BURST = 15
PAUSED = 10
PAUSE_SECONDS = 0.03
FIRST_ROWS = 5
RECYCLES = 10
CLIENTS = 4
SATURATED_SECONDS = 1.0
CONFIG = """\
[http]
listen = ""
[pool]
max_clones = 60
[templates.blog]
sql = ["{examples}/*.sql"]
min_ready = {clones}
max_clones = {clones}
[templates.single]
sql = ["{examples}/*.sql"]
min_ready = 1
max_clones = 1
"""
CHANGE = """
INSERT INTO blog.tb_user (username, email, password_hash)
SELECT 'user' || n, 'u' || n || '@example.org', '' FROM generate_series(1, 3) n;
UPDATE blog.tb_post SET word_count = word_count + 1
"""
_MOST_SLOWER = 1.03


class Tree:
    """One source tree's daemon, and the times that were measured on it.

    Args:
        name: for people.
        source: the directory that holds the package.
        directory: for its state, socket and log.
    """

    def __init__(self, name: str, source: Path, directory: Path) -> None:
        self.name = name
        self.times: dict[str, list[float]] = {}
        self._source = source
        self._directory = directory
        self._running = ExitStack()
        self._client: Client | None = None
        self.socket = ""
        directory.mkdir(mode=0o711)

    @property
    def client(self) -> Client:
        """The client that is connected to the daemon."""
        if self._client is None:
            raise RuntimeError("the daemon is not running")
        return self._client

    def start(self) -> None:
        """Start the daemon and take the first lease; the time of that is measured."""
        config = CONFIG.format(examples=ROOT / "examples" / "blog", clones=CLONES)
        began = time.perf_counter()
        path, self._pid = self._running.enter_context(
            peers.daemon_run(self._directory, config, source=self._source)
        )
        self.socket = str(path)
        self._client = self._running.enter_context(Client(str(path), name="compare"))
        self._client.lease("blog", timeout=60).release()
        self._began = time.perf_counter() - began
        peers.await_rest(self._client)

    def note_start(self) -> None:
        """Count the last start; the first one, which makes everything, is not comparable."""
        self.note("start to first lease", self._began)

    def stop(self) -> None:
        """Stop the daemon; what it leaves is there for the next start."""
        self._running.close()
        self._running = ExitStack()

    def discard(self) -> None:
        """Remove the server's data."""
        anyio.run(discard, self._directory / "state")

    def note(self, what: str, seconds: float) -> None:
        """Keep one measured value."""
        self.times.setdefault(what, []).append(seconds)

    def note_memory(self) -> None:
        """Keep the daemon's resident memory, in bytes."""
        self.note("memory", peers.resident_bytes(self._pid))


def burst(tree: Tree) -> None:
    """Ping, then acquire, without a pause between one answer and the next request."""
    client = tree.client
    _timed(tree, "ping in a burst", BURST, lambda: client.call("ping"))
    leases: list[Lease] = []
    _timed(tree, "acquire in a burst", BURST, lambda: leases.append(client.lease("blog")))
    _timed(tree, "release in a burst", BURST, lambda: leases.pop().release())
    peers.await_rest(client)


def paused(tree: Tree) -> None:
    """Acquire after a pause, in which the daemon sleeps."""
    leases: list[Lease] = []
    for _ in range(PAUSED):
        time.sleep(PAUSE_SECONDS)
        _timed(tree, "acquire after a pause", 1, lambda: leases.append(tree.client.lease("blog")))
    for lease in leases:
        lease.release()
    peers.await_rest(tree.client)


def first_row(tree: Tree) -> None:
    """Acquire, connect, and read one row."""

    async def read(url: str) -> None:
        session = await asyncpg.connect(url)
        await session.fetchval("SELECT count(*) FROM blog.tb_user")
        await session.close()

    for _ in range(FIRST_ROWS):
        began = time.perf_counter()
        with tree.client.lease("blog") as lease:
            anyio.run(read, lease.url)
            tree.note("first row", time.perf_counter() - began)
    peers.await_rest(tree.client)


def recycle(tree: Tree) -> None:
    """Give the only clone back, changed or not, and have it again."""

    async def change(url: str, script: str) -> None:
        session = await asyncpg.connect(url)
        await session.execute(script)
        await session.close()

    for what, script in (("read only", "SELECT count(*) FROM blog.tb_user"), ("changed", CHANGE)):
        for _ in range(RECYCLES):
            lease = tree.client.lease("single", timeout=60)
            anyio.run(change, lease.url, script)
            began = time.perf_counter()
            lease.release()
            lease = tree.client.lease("single", timeout=60)
            tree.note(f"recycle, {what}", time.perf_counter() - began)
            lease.release()
    peers.await_rest(tree.client)


def saturate(tree: Tree) -> None:
    """Lease and release by several clients without a pause; the time of each is measured."""
    until = time.perf_counter() + SATURATED_SECONDS
    counts = [0] * CLIENTS

    def work(number: int) -> None:
        with Client(tree.socket) as client:
            while time.perf_counter() < until:
                client.lease("blog", timeout=60).release()
                counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tree.note("time of a lease, 4 clients", SATURATED_SECONDS / max(1, sum(counts)))
    peers.await_rest(tree.client)


PARTS: tuple[Callable[[Tree], None], ...] = (burst, paused, first_row, recycle, saturate)


def measure(trees: list[Tree], rounds: int) -> None:
    """Measure everything in turn, in several rounds with one restart each."""
    for tree in trees:
        tree.start()
    for number in range(rounds):
        for part in PARTS:
            for tree in random.sample(trees, len(trees)):
                part(tree)
        for tree in random.sample(trees, len(trees)):
            tree.note_memory()
            tree.stop()
            tree.start()
            tree.note_start()
        print(f"round {number + 1} of {rounds}", flush=True)
    for tree in trees:
        tree.stop()


def report(base: Tree, ours: Tree) -> str:
    """Return the medians and their ratios as a table."""
    rows = []
    for what, before in base.times.items():
        after = ours.times[what]
        ratio = middle(after) / middle(before)
        scale = 1 / formats.MIB if what == "memory" else formats.MICRO
        unit = "MiB" if what == "memory" else "µs"
        tail = quantile(sorted(after), 0.9) / quantile(sorted(before), 0.9)
        mark = "slower" if ratio > _MOST_SLOWER else ""
        both = [formats.digits(middle(each) * scale) + f" {unit}" for each in (before, after)]
        rows.append([what, *both, f"{ratio:.3f}", f"{tail:.2f}", mark])
    head = ["median of", base.name, ours.name, "ratio", "ratio at p90", ""]
    return formats.table(head, rows)


def main() -> None:
    """Compare two trees and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("base", help="git revision to compare with")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clonepool-compare-") as scratch:
        directory = Path(scratch)
        directory.chmod(0o711)
        earlier = directory / "base"
        earlier.mkdir()
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", arguments.base, "daemon"],  # noqa: S607 - git
            check=True,
            capture_output=True,
        )
        subprocess.run(["tar", "-x", "-C", earlier], input=archive.stdout, check=True)  # noqa: S607 - tar
        base = Tree(arguments.base, earlier / "daemon", directory / "before")
        ours = Tree("this tree", ROOT / "daemon", directory / "after")
        try:
            measure([base, ours], arguments.rounds)
        finally:
            for tree in (base, ours):
                tree.stop()
                tree.discard()
        print(report(base, ours))


def _timed(tree: Tree, what: str, times: int, call: Callable[[], object]) -> None:
    for _ in range(times):
        began = time.perf_counter()
        call()
        tree.note(what, time.perf_counter() - began)


if __name__ == "__main__":
    main()
