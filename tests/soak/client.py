"""One client process: leases clones, checks and changes them, releases them or crashes.

It writes each step to its journal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from clonepool.errors import ClonepoolError, ConnectionLostError, DaemonNotFoundError
from soak.changes import CHANGES
from soak.connection import Connection, on_cut_signal, runqueue_seconds
from soak.endings import DECK, Endings
from soak.journal import Journal, clock
from soak.sessions import CloneSessions

if TYPE_CHECKING:
    from clonepool.client import Lease
    from soak.facts import Facts

SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 0.2, 5.0
SHORTEST_TTL, LONGEST_TTL = 0.8, 5.0
TIDE_SECONDS, EBB_SECONDS = 12.0, 5.0
"""Seconds between two quiet phases, and seconds that one lasts; clones become ready in them."""
_PAUSE_SECONDS = 0.05


class Round:
    """One lease from its grant to its end, as the client sees it.

    Attributes:
        until: earliest time at which the TTL ends it; None without a TTL.
        over_at: latest time at which the TTL has ended it.
    """

    def __init__(self, lease: Lease, name: str, asked: float, ttl: float | None) -> None:
        self.lease = lease
        self.name = name
        self.until = None if ttl is None else asked + ttl
        self.over_at = clock() + (lease.expires_in_seconds or 0.0)
        self.sessions: CloneSessions | None = None

    def time_left(self) -> float:
        """Return the seconds until the TTL may end it; very many without a TTL."""
        return 1e9 if self.until is None else self.until - clock()


class SoakClient:
    """Works through rounds until it is told to stop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.who = arguments.who
        self.random = random.Random(arguments.seed)
        self.connection: Connection | None = None
        on_cut_signal(lambda: self.connection)
        self.journal = Journal(arguments.journal, self.who)
        self.journal.write("client_started", pid=os.getpid())
        self.marked = False
        self.loop = asyncio.new_event_loop()
        self.references: dict[str, Facts] = json.loads(arguments.references.read_text())
        self._socket = str(arguments.socket)
        self._until = arguments.until
        self._stop: Path = arguments.stop
        self._numbers = 0
        self._deck: list[str] = []
        self._endings = Endings(self)

    def run(self) -> None:
        """Work through rounds until the run is over, then close the connection."""
        while clock() < self._until and not self._stop.exists():
            if clock() % TIDE_SECONDS < EBB_SECONDS:
                time.sleep(min(self.random.expovariate(0.5), self._until - clock() + 0.1))
            if not self._connect():
                time.sleep(_PAUSE_SECONDS)
                continue
            if self.random.random() < 0.06:
                self._walk_away()
            else:
                self._play()
        if self.connection is not None:
            self.connection.hang_up(by="end")

    def number(self, prefix: str) -> str:
        """Return a name that is unique in the run."""
        self._numbers += 1
        return f"{self.who}.{prefix}{self._numbers}"

    def _connect(self) -> bool:
        """Make sure that there is a connection; sometimes replace a working one."""
        if self.connection is not None and (
            not self.connection.is_alive() or self.random.random() < 0.1
        ):
            self.connection.hang_up(by="gone" if not self.connection.is_alive() else "choice")
            self.connection = None
        if self.connection is None:
            with contextlib.suppress(DaemonNotFoundError, OSError):
                self.connection = Connection(self._socket, self.journal, self.number("conn"))
        return self.connection is not None

    def reconnect(self, seconds: float) -> Connection | None:
        """Return a connection, or None if no daemon answers in time."""
        deadline = clock() + min(seconds, 3.0)
        while not self._connect():
            if clock() > deadline:
                return None
            time.sleep(_PAUSE_SECONDS)
        return self.connection

    def _play(self) -> None:
        round_ = self._acquire()
        if round_ is None:
            return
        try:
            self._use(round_)
            if not self._deck:
                self._deck = self.random.sample(DECK, len(DECK))
            self._endings.end(round_, self._deck.pop())
        finally:
            if round_.sessions is not None:
                round_.sessions.leave()

    def _acquire(self) -> Round | None:
        connection = self.connection
        assert connection is not None
        template = self.random.choice(sorted(self.references))
        timeout = SHORTEST_TIMEOUT * (LONGEST_TIMEOUT / SHORTEST_TIMEOUT) ** self.random.random()
        ttl = self.random.uniform(SHORTEST_TTL, LONGEST_TTL) if self.random.random() < 0.3 else None
        ask, queued = self.number("ask"), runqueue_seconds(os.getpid())
        facts = {"ask": ask, "conn": connection.conn, "daemon": connection.daemon}
        asked = self.journal.write("asked", **facts, template=template, timeout=timeout, ttl=ttl)
        try:
            lease = connection.lease(template, timeout=timeout, ttl=ttl, label=ask)
        except (ConnectionLostError, OSError):
            self.journal.write("lost", **facts, delayed=runqueue_seconds(os.getpid()) - queued)
            return None
        except ClonepoolError as error:
            delayed = runqueue_seconds(os.getpid()) - queued
            self.journal.write(
                "refused", **facts, code=error.code, delayed=delayed, said=str(error)
            )
            if error.code == "shutting_down":
                time.sleep(_PAUSE_SECONDS)
            return None
        round_ = Round(lease, self.number("lease"), asked, ttl)
        self.journal.write(
            "granted",
            **facts,
            lease=round_.name,
            template=template,
            clone=lease.database,
            token=token_hash(lease.token),
            ttl=ttl,
            source=lease.source,
            delayed=runqueue_seconds(os.getpid()) - queued,
        )
        return round_

    def _use(self, round_: Round) -> None:
        """Check the clone, change it, hold it for a while, check it again."""
        self.look(round_)
        if not self.still_holds(round_, 1.0):
            return
        sessions = round_.sessions
        assert sessions is not None
        chosen = self.random.sample(sorted(CHANGES), self.random.randint(1, 4))
        chosen.sort(key="prepared".__eq__)  # last: its locks stay
        self.tell(
            "marked", round_, sessions.mark(chosen, second_session=self.random.random() < 0.15)
        )
        self.hold(round_)

    def hold(self, round_: Round) -> None:
        """Hold the clone for a while, then check that it is unchanged since."""
        long = self.random.random() < (0.05 if round_.until is None else 0.3)
        time.sleep(self.random.uniform(0.5, 1.5) if long else self.random.expovariate(10))
        sessions = round_.sessions
        if sessions is not None and self.marked and self.still_holds(round_, 0.2):
            self.tell("rechecked", round_, sessions.recheck(anew=self.random.random() < 0.3))

    def look(self, round_: Round) -> None:
        """Check that the clone is pristine."""
        if round_.sessions is not None:
            round_.sessions.leave()
        lease = round_.lease
        round_.sessions = CloneSessions(self.loop, round_.name, lease.url, lease.database)
        self.marked = False
        self.tell("checked", round_, round_.sessions.check(self.references[lease.template]))

    def tell(self, what: str, round_: Round, verdict: tuple[str, object]) -> None:
        """Write a verdict to the journal."""
        word, detail = verdict
        self.marked = word in {"marked", "mine"}
        clone = round_.lease.database
        self.journal.write(what, lease=round_.name, clone=clone, verdict=word, detail=detail)

    def still_holds(self, round_: Round, seconds: float) -> bool:
        """Say whether the lease lasts at least some seconds more, as far as the client knows."""
        if round_.until is None:
            return self.connection is not None and self.connection.is_alive()
        return round_.time_left() > seconds

    def _walk_away(self) -> None:
        """Pipeline several acquires, and close the connection while some of them wait."""
        connection = self.connection
        assert connection is not None
        asks = []
        for _ in range(self.random.randint(1, 3)):
            ttl = self.random.uniform(SHORTEST_TTL, 2.0) if self.random.random() < 0.2 else None
            template = self.random.choice(sorted(self.references))
            asks.append({"template": template, "timeout": self.random.uniform(0.2, 2), "ttl": ttl})
        names = [self.number("ask") for _ in asks]
        for name, params in zip(names, asks, strict=True):
            self.journal.write(
                "asked", ask=name, conn=connection.conn, daemon=connection.daemon, **params
            )
        for reply in connection.pipeline(asks, self.random.uniform(0.0, 0.6)):
            if "method" not in reply:
                self._read_pipelined(connection, names, asks, reply)
        connection.hang_up(by="walked_away")
        self.connection = None

    def _read_pipelined(
        self,
        connection: Connection,
        names: list[str],
        asks: list[dict[str, object]],
        reply: dict[str, object],
    ) -> None:
        number = int(str(reply["id"])[1:])
        facts = {"ask": names[number], "conn": connection.conn, "daemon": connection.daemon}
        granted, error = reply.get("result"), reply.get("error")
        if isinstance(granted, dict):
            self.journal.write(
                "granted",
                **facts,
                lease=self.number("lease"),
                clone=granted["database"],
                token=token_hash(granted["lease"]),
                ttl=asks[number]["ttl"],
                source=granted["source"],
            )
        elif isinstance(error, dict):
            self.journal.write(
                "refused", **facts, code=error["data"]["code"], said=error["message"]
            )


def token_hash(token: str) -> str:
    """Return the digest by which the journal names a token."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def main() -> None:
    """Run one client."""
    parser = argparse.ArgumentParser(prog="python -m soak.client")
    parser.add_argument("--who", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--until", type=float, required=True)
    for path in ("--journal", "--socket", "--references", "--stop"):
        parser.add_argument(path, type=Path, required=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner tells its clients when to stop
    SoakClient(parser.parse_args()).run()


if __name__ == "__main__":
    main()
