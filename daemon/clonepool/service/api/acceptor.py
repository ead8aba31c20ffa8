"""Accepts connections from a listening socket: a few at a time, and on after a shortage.

The event loops have this built in, and handle a lack of files badly: uvloop accepts the waiting
connections and closes them, asyncio logs a traceback each second. Here they stay in the kernel's
queue until there are files again.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from clonepool.service.resources import Resources

log = structlog.get_logger()

AGAIN_SECONDS = 0.1
"""Seconds to the next attempt after a connection could not be accepted."""
_NO_FAULT = (errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.EPROTO)


class Acceptor:
    """Gives each connection a protocol of its own.

    Args:
        bound: the socket; its owner closes it.
        factory: makes a protocol.
        shortages: are told when a connection cannot be accepted because a resource is missing.
        turn: connections that are accepted before other callbacks run.
        rest: seconds until the next turn.
    """

    def __init__(
        self,
        bound: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        shortages: Resources,
        *,
        turn: int,
        rest: float = 0.0,
    ) -> None:
        self._bound = bound
        self._factory = factory
        self._shortages = shortages
        self._turn = turn
        self._rest = rest
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._open = False

    def open(self, backlog: int) -> None:
        """Begin to listen and to accept; up to `backlog` connections may wait to be accepted."""
        self._bound.setblocking(False)
        self._bound.listen(backlog)
        self._open = True
        self._listen()

    def close(self) -> None:
        """Accept no more connections; those that were accepted stay."""
        if not self._open:
            return
        self._open = False
        if self._again is not None:
            self._again.cancel()
            self._again = None
        else:
            self._loop.remove_reader(self._bound)

    def _listen(self) -> None:
        self._again = None
        self._loop.add_reader(self._bound, self._take)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._bound)
        self._again = self._loop.call_later(seconds, self._listen)

    def _take(self) -> None:
        for _ in range(self._turn):
            try:
                connection, _address = self._bound.accept()
            except OSError as error:
                if error.errno not in _NO_FAULT:
                    self._failed(error)
                    self._pause(AGAIN_SECONDS)
                return
            task = self._loop.create_task(self._enter(connection))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)
        if self._rest:
            self._pause(self._rest)

    async def _enter(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._factory, connection)
        except Exception as error:  # noqa: BLE001 - a mistake here costs one connection
            connection.close()
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._shortages.note(error):
            log.warning("connection.not_taken", error=str(error) or repr(error))
