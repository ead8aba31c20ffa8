"""A connection without the client library: sends and reads lines of the protocol."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class RawConnection:
    """One connection; requests can be pipelined."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")

    def send(self, request: int | str, method: str, /, **params: object) -> None:
        """Send a request without waiting for the reply."""
        self.write({"id": request, "method": method, "params": params})

    def write(self, *messages: dict[str, object]) -> None:
        """Send several messages in one write."""
        lines = (json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
        self._socket.sendall("".join(lines).encode())

    def receive(self) -> dict[str, Any]:
        """Read one line."""
        line = self._file.readline()
        assert line, "the connection was closed"
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._socket.close()
