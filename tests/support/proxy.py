"""A proxy in front of a server, whose connections can be cut, stalled or dropped silently."""

from __future__ import annotations

import contextlib
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK = 65_536


class _Line:
    """One connection through the proxy."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._ends = (near, far)
        self.flowing = threading.Event()
        self.flowing.set()

    def run(self) -> None:
        """Forward bytes both ways, in one thread each."""
        near, far = self._ends
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def end(self) -> None:
        """Close both ends."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.flowing.set()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self.flowing.wait()
                sink.sendall(data)
        self.flowing.wait()  # over a stalled connection not even its end arrives
        self.end()


class Proxy:
    """A TCP port that leads to a server.

    Args:
        connect: opens a connection to the server.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._lines: list[_Line] = []
        self._forgotten: list[_Line] = []
        self._stalled = False
        self.opened = 0
        """Connections so far, including stalled ones."""
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._listen()

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for line in self._lines:
                line.end()
            self._lines.clear()

    def mend(self) -> None:
        """Let new connections through again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listen()

    def stall(self) -> None:
        """Stall all connections, present and new."""
        with self._lock:
            self._stalled = True
            for line in self._lines:
                line.flowing.clear()

    def flow(self) -> None:
        """End the stall, and forward what arrived during it."""
        with self._lock:
            self._stalled = False
            for line in self._lines:
                line.flowing.set()

    def forget(self) -> None:
        """Drop the present connections silently; forward only new ones.

        So does a firewall that restarts.
        """
        with self._lock:
            for line in self._lines:
                line.flowing.clear()
            self._forgotten += self._lines
            self._lines.clear()
            self._stalled = False

    def close(self) -> None:
        """Close the proxy and all connections."""
        self.cut()
        with self._lock:
            for line in self._forgotten:
                line.end()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.opened += 1
                try:
                    far = self._connect()
                except OSError:
                    near.close()
                    continue
                line = _Line(near, far)
                with self._lock:
                    if self._stalled:
                        line.flowing.clear()
                    self._lines.append(line)
                line.run()


@contextmanager
def proxy_to_unix(path: str) -> Iterator[Proxy]:
    """Run a proxy in front of a Unix socket."""

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            raise
        return connection

    proxy = Proxy(connect)
    try:
        yield proxy
    finally:
        proxy.close()
