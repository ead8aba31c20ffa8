"""Waiting for a daemon that is being started."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

import click

from clonepool.client import Client
from clonepool.errors import ClonepoolError, ConnectionLostError, DaemonNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SILENT_SECONDS = 1.0
"""Seconds without an answer after which the user is told that the daemon is starting."""
_RETRY_SECONDS = 0.05


class _TooLateError(Exception):
    """The time to wait is over."""


def connect(socket_path: str | None, wait: float) -> Client:
    """Return a client of a daemon that has started.

    A daemon accepts connections while it starts, and answers when it has started: that is waited
    for in any case, and people are told. It refuses those that came early when it cannot start.

    Args:
        socket_path: where the daemon listens; None for the default places.
        wait: seconds to wait for a daemon that does not listen yet, and for one to start; 0 to
            wait for one that listens already, without a limit.

    Raises:
        DaemonNotFoundError, ConnectionLostError: no daemon was there in time.
        ShuttingDownError: the daemon could not start.
        ClonepoolError: it was still starting when the time was over.
    """
    deadline = time.monotonic() + wait if wait else inf
    while True:
        try:
            with _alarm(deadline):
                client = Client(socket_path)
                client.call("ping")
        except (DaemonNotFoundError, ConnectionLostError):
            if not wait or time.monotonic() + _RETRY_SECONDS > deadline:
                raise
        except _TooLateError:
            raise ClonepoolError(
                f"the daemon is still starting after {wait:g} s",
                remedy="wait longer, or see its log",
            ) from None
        else:
            return client
        time.sleep(_RETRY_SECONDS)


@contextmanager
def _alarm(deadline: float) -> Iterator[None]:
    """Tell the user when the body takes a while; end it by _TooLateError at the deadline."""
    told = False

    def ring(_: int, __: FrameType | None) -> None:
        nonlocal told
        left = deadline - time.monotonic()
        if left <= 0:
            raise _TooLateError
        if not told:
            click.echo("clonepool: the daemon is starting", err=True)
        told = True
        if left < inf:
            signal.setitimer(signal.ITIMER_REAL, left)

    before = signal.signal(signal.SIGALRM, ring)
    left = max(0.001, deadline - time.monotonic())
    signal.setitimer(signal.ITIMER_REAL, min(_SILENT_SECONDS, left))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
