"""The client's end of one connection: calls to bytes, bytes to replies.

Standard library only, so that a test runner pays nothing for importing it.
"""

from __future__ import annotations

import json
from typing import Any

from clonepool.errors import BY_CODE, ClonepoolError
from clonepool.protocol.framing import LineReader

_MAX_REPLY_BYTES = 64 * 1024 * 1024
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Reply:
    """What the daemon said to request `id`: a result, or an error to raise."""

    __slots__ = ("error", "id", "result")

    def __init__(self, request: Any, result: Any, error: ClonepoolError | None) -> None:
        self.id = request
        self.result = result
        self.error = error


class Notification:
    """What the daemon said without having been asked."""

    __slots__ = ("method", "params")

    def __init__(self, method: str, params: dict[str, Any]) -> None:
        self.method = method
        self.params = params


class ClientConnection:
    """Number requests and read replies."""

    def __init__(self) -> None:
        self._lines = LineReader(_MAX_REPLY_BYTES)
        self._last_id = 0

    def request(self, method: str, params: dict[str, Any]) -> tuple[int, bytes]:
        """Return the new request's id and its line. Parameters that are None are left out."""
        self._last_id += 1
        message = {
            "jsonrpc": "2.0",
            "id": self._last_id,
            "method": method,
            "params": {key: value for key, value in params.items() if value is not None},
        }
        return self._last_id, _encode(message).encode() + b"\n"

    def receive(self, data: bytes) -> list[Reply | Notification]:
        """Return the replies and notifications that `data` completes, in order."""
        return [_read(line) for line in self._lines.feed(data)]


def _read(line: bytes) -> Reply | Notification:
    message = json.loads(line)
    if "id" not in message and "method" in message:
        return Notification(message["method"], message.get("params", {}))
    error = message.get("error")
    return Reply(
        message.get("id"),
        message.get("result"),
        _error(error) if error is not None else None,
    )


def _error(body: dict[str, Any]) -> ClonepoolError:
    data = body.get("data") or {}
    kind = BY_CODE.get(data.get("code", ""), ClonepoolError)
    remedy = data.get("remedy", "")
    message = str(body.get("message", "")).removesuffix(f" ({remedy})")
    return kind(message, remedy=remedy)
