"""The ways in which a client ends a lease: release, reset, keep, renew, expire, close or crash."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from clonepool.errors import ClonepoolError, ConnectionLostError
from soak.connection import Connection, runqueue_seconds
from soak.journal import clock

if TYPE_CHECKING:
    from soak.client import Round, SoakClient

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
"""Drawn without replacement, so that even a short run has each."""


class Endings:
    """Ends the rounds of one client."""

    def __init__(self, client: SoakClient) -> None:
        self._client = client
        self._write = client.journal.write

    def end(self, round_: Round, how: str) -> None:
        """End the lease in the given way, if there is a connection for it."""
        connection = self._connection(round_)
        if connection is None:
            self._write("no_connection", lease=round_.name)
            return
        getattr(self, f"_{how.replace(' ', '_')}")(connection, round_)

    def _connection(self, round_: Round) -> Connection | None:
        """Return a connection; a new one only for a lease with a TTL, as others have ended."""
        client = self._client
        if client.connection is not None and client.connection.is_alive():
            return client.connection
        if round_.until is None:
            return None
        return client.reconnect(round_.time_left())

    def _release(self, connection: Connection, round_: Round, *, keep: bool = False) -> bool:
        by = "keep" if keep else "release"
        if self._client.random.random() < 0.5 and round_.sessions is not None:
            round_.sessions.leave()
        self._write("releasing", lease=round_.name, conn=connection.conn, by=by)
        found = self._call(
            connection, round_, "release", lease=round_.lease.token, keep=keep or None
        )
        if found is not None:
            leaked = found["leaked"]
            count = None if leaked is None else len(leaked)
            self._write("released", lease=round_.name, leaked=count, by=by)
        return found is not None

    def _release_twice(self, connection: Connection, round_: Round) -> None:
        if self._release(connection, round_):
            self._use_stale(connection, round_.lease.token, round_.name)

    def _keep(self, connection: Connection, round_: Round) -> None:
        self._release(connection, round_, keep=True)

    def _forge(self, connection: Connection, round_: Round) -> None:
        """Try a token that was never issued, then release the lease."""
        self._use_stale(connection, round_.lease.token[:-1] + "!", round_.name)
        self._release(connection, round_)

    def _reset(self, connection: Connection, round_: Round) -> None:
        client = self._client
        timeout = client.random.uniform(0.5, 5.0)
        ask, queued = client.number("ask"), runqueue_seconds(os.getpid())
        facts = {
            "ask": ask,
            "conn": connection.conn,
            "daemon": connection.daemon,
            "lease": round_.name,
        }
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
        client.look(round_)
        if connection.is_alive():
            self._release(connection, round_)

    def _renew(self, connection: Connection, round_: Round) -> None:
        """Renew, then hold the clone for a while, sometimes without a connection."""
        client = self._client
        ttl = client.random.uniform(1.5, 3.0)
        began = self._write("renewing", lease=round_.name, ttl=ttl)
        found = self._call(connection, round_, "renew", lease=round_.lease.token, ttl=ttl)
        if found is None:
            self._write("abandoned", lease=round_.name, by="renew lost")
            return
        round_.until = began + ttl
        self._write("renewed", lease=round_.name, ttl=ttl)
        if client.random.random() < 0.5:
            connection.hang_up(by="renewed")
        client.hold(round_)
        again = self._connection(round_)
        if again is None:
            self._write("no_connection", lease=round_.name)
        else:
            self._release(again, round_)

    def _expire(self, connection: Connection, round_: Round) -> None:
        """Wait until the TTL is over; the token must be invalid then."""
        if round_.until is None:
            self._release(connection, round_)
            return
        left = round_.over_at - clock()
        self._write("expiring", lease=round_.name, left=left)
        time.sleep(max(0.0, left) + 0.5)
        if self._client.connection is not None and self._client.connection.is_alive():
            self._use_stale(self._client.connection, round_.lease.token, round_.name, by="expired")

    def _close(self, connection: Connection, _: Round) -> None:
        connection.hang_up(by="no release")

    def _exit(self, connection: Connection, round_: Round) -> None:
        self._write("crashing", lease=round_.name, conn=connection.conn, by="exit")
        os._exit(70)

    def _kill(self, connection: Connection, round_: Round) -> None:
        self._write("crashing", lease=round_.name, conn=connection.conn, by="kill")
        os.kill(os.getpid(), signal.SIGKILL)

    def _use_stale(
        self, connection: Connection, token: str, name: str, *, by: str = "stale"
    ) -> None:
        try:
            connection.call("release", lease=token)
        except (ConnectionLostError, OSError):
            self._write("lost", conn=connection.conn)
        except ClonepoolError as error:
            self._write("stale_refused", of=name, code=error.code, by=by)
        else:
            # A daemon that was frozen may not have noticed the end yet, which is harmless.
            self._write("expired_accepted" if by == "expired" else "stale_accepted", of=name)

    def _call(self, connection: Connection, round_: Round, method: str, **params: object) -> Any:
        """Call a method; on failure, write that to the journal and return None."""
        try:
            return connection.call(method, **params)
        except (ConnectionLostError, OSError):
            self._write("lost", conn=connection.conn, of=round_.name)
        except ClonepoolError as error:
            facts = {"lease": round_.name, "code": error.code, "said": str(error)}
            self._write(f"{method}_refused", **facts)
        return None
