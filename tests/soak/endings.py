"""How a lease ends: given back, twice, reset, kept, prolonged, forgotten, or with a crash."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from clonepool.errors import ClonepoolError, ConnectionLostError
from soak.journal import clock
from soak.line import Line, runqueue_seconds

if TYPE_CHECKING:
    from soak.client import Player, Round

DECK = (
    *("release",) * 12,
    *("release twice",) * 4,
    *("reset",) * 6,
    *("close",) * 4,
    *("renew",) * 3,
    *("expire",) * 2,
    "keep",
    "forge",
    "exit",
    "kill",
)
"""Dealt out without replacement, so that even a short run sees each."""


class Endings:
    """Ends rounds, for one player."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self._write = player.journal.write

    def end(self, round_: Round, how: str) -> None:
        """End the lease in that way, as far as the connection lets us."""
        line = self._line(round_)
        if line is None:
            self._write("no_line", lease=round_.name)
            return
        getattr(self, f"_{how.replace(' ', '_')}")(line, round_)

    def _line(self, round_: Round) -> Line | None:
        """Return a line to the daemon: only a lease with a TTL outlives the one it came by."""
        player = self._player
        if player.line is not None and player.line.is_alive():
            return player.line
        if round_.until is None:
            return None
        return player.reconnect(round_.time_left())

    def _release(self, line: Line, round_: Round, *, keep: bool = False) -> bool:
        by = "keep" if keep else "release"
        if self._player.random.random() < 0.5 and round_.visit is not None:
            round_.visit.leave()
        self._write("releasing", lease=round_.name, conn=line.conn, by=by)
        found = self._call(line, round_, "release", lease=round_.lease.token, keep=keep or None)
        if found is not None:
            leaked = found["leaked"]
            count = None if leaked is None else len(leaked)
            self._write("released", lease=round_.name, leaked=count, by=by)
        return found is not None

    def _release_twice(self, line: Line, round_: Round) -> None:
        if self._release(line, round_):
            self._use_stale(line, round_.lease.token, round_.name)

    def _keep(self, line: Line, round_: Round) -> None:
        self._release(line, round_, keep=True)

    def _forge(self, line: Line, round_: Round) -> None:
        """Try a token that nobody was given; the lease itself goes on."""
        self._use_stale(line, round_.lease.token[:-1] + "!", round_.name)
        self._release(line, round_)

    def _reset(self, line: Line, round_: Round) -> None:
        player = self._player
        timeout = player.random.uniform(0.5, 5.0)
        ask, queued = player.number("ask"), runqueue_seconds(os.getpid())
        facts = {"ask": ask, "conn": line.conn, "daemon": line.daemon, "lease": round_.name}
        self._write("asked", **facts, timeout=timeout, by="reset")
        self._write("resetting", **facts)
        try:
            round_.lease.reset(timeout=timeout)
        except (ConnectionLostError, OSError):
            self._write("lost", **facts, delayed=runqueue_seconds(os.getpid()) - queued)
            return
        except ClonepoolError as error:
            delayed = runqueue_seconds(os.getpid()) - queued
            self._write("reset_refused", **facts, code=error.code, delayed=delayed)
            return
        delayed = runqueue_seconds(os.getpid()) - queued
        clone = round_.lease.database
        self._write("reset", **facts, clone=clone, until=round_.until, delayed=delayed)
        player.look(round_)
        if line.is_alive():
            self._release(line, round_)

    def _renew(self, line: Line, round_: Round) -> None:
        """Prolong, and then be away for a while: the lease is to be there all the same."""
        player = self._player
        ttl = player.random.uniform(1.5, 3.0)
        began = self._write("renewing", lease=round_.name, ttl=ttl)
        found = self._call(line, round_, "renew", lease=round_.lease.token, ttl=ttl)
        if found is None:
            self._write("abandoned", lease=round_.name, by="renew lost")
            return
        round_.until = began + ttl
        self._write("renewed", lease=round_.name, ttl=ttl)
        if player.random.random() < 0.5:
            line.hang_up(by="renewed")
        player.hold(round_)
        again = self._line(round_)
        if again is None:
            self._write("no_line", lease=round_.name)
        else:
            self._release(again, round_)

    def _expire(self, line: Line, round_: Round) -> None:
        """Wait until a TTL is over; the token is then worth nothing."""
        if round_.until is None:
            self._release(line, round_)
            return
        left = round_.over_at - clock()
        self._write("expiring", lease=round_.name, left=left)
        time.sleep(max(0.0, left) + 0.5)
        if self._player.line is not None and self._player.line.is_alive():
            self._use_stale(self._player.line, round_.lease.token, round_.name, by="expired")

    def _close(self, line: Line, _: Round) -> None:
        line.hang_up(by="no release")

    def _exit(self, line: Line, round_: Round) -> None:
        self._write("crashing", lease=round_.name, conn=line.conn, by="exit")
        os._exit(70)

    def _kill(self, line: Line, round_: Round) -> None:
        self._write("crashing", lease=round_.name, conn=line.conn, by="kill")
        os.kill(os.getpid(), signal.SIGKILL)

    def _use_stale(self, line: Line, token: str, name: str, *, by: str = "stale") -> None:
        try:
            line.call("release", lease=token)
        except (ConnectionLostError, OSError):
            self._write("lost", conn=line.conn)
        except ClonepoolError as error:
            self._write("stale_refused", of=name, code=error.code, by=by)
        else:
            # A daemon that was frozen may not have looked at its clock yet: that harms nobody.
            self._write("expired_accepted" if by == "expired" else "stale_accepted", of=name)

    def _call(self, line: Line, round_: Round, method: str, **params: object) -> Any:
        """Call; None when it failed, which is then written down."""
        try:
            return line.call(method, **params)
        except (ConnectionLostError, OSError):
            self._write("lost", conn=line.conn, of=round_.name)
        except ClonepoolError as error:
            facts = {"lease": round_.name, "code": error.code, "said": str(error)}
            self._write(f"{method}_refused", **facts)
        return None
