"""The client's end of one connection: calls to bytes, bytes to replies.

Standard library only, so that a test runner pays nothing for importing it.
"""

from __future__ import annotations

import json
from collections import deque
from itertools import count

from clonepool.errors import BY_CODE, BadRequestError, ClonepoolError
from clonepool.protocol.framing import MAX_LINE_BYTES

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from typing import Any

_MAX_REPLY_BYTES = 64 * 1024 * 1024
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode
_decode = json.JSONDecoder().raw_decode


class NotAReplyError(Exception):
    """The other end sent what no daemon sends: where the next reply begins cannot be known."""


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
    """Number requests and read replies.

    What is read is processed in two steps, so that a reader that is interrupted between any two
    instructions loses nothing: `complete` changes nothing and can be called again; assigning what
    it returns to `pieces` says that the messages have been dealt with.

    Attributes:
        pieces: what was received and not dealt with, never empty. Received data is appended; when
            it has a line's end in it, `complete` is to be called before more is appended.
    """

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque((b"",))
        self._numbers = count(1)

    def request(self, method: str, params: dict[str, Any]) -> tuple[int, bytes]:
        """Return the new request's id and its line. Parameters that are None are left out.

        Raises:
            BadRequestError: the daemon would not only refuse it but also close the connection, or
                could not say whose request it refuses.
        """
        number = next(self._numbers)
        message = {
            "jsonrpc": "2.0",
            "id": number,
            "method": method,
            "params": {key: value for key, value in params.items() if value is not None},
        }
        try:
            line = _encode(message).encode() + b"\n"
        except UnicodeEncodeError as error:
            raise BadRequestError(
                f"{method}: a parameter cannot be written in UTF-8: {error}",
                remedy="replace the characters that stand for bytes that are not UTF-8",
            ) from error
        if len(line) > MAX_LINE_BYTES:
            raise BadRequestError(
                f"{method}: a request of {len(line)} bytes",
                remedy=f"send {MAX_LINE_BYTES} at most",
            )
        return number, line

    def complete(self) -> tuple[list[Reply | Notification], deque[bytes]]:
        """Return the messages that are complete, in order, and what is left after them.

        Raises:
            NotAReplyError: a line is no message, or is too long.
        """
        if b"\n" not in self.pieces[-1]:
            if len(self.pieces) > 1 and sum(map(len, self.pieces)) > _MAX_REPLY_BYTES:
                raise NotAReplyError(f"a line of more than {_MAX_REPLY_BYTES} bytes")
            return [], self.pieces
        rest, *others = self.pieces
        data = others[0] if len(others) == 1 and not rest else b"".join(self.pieces)
        *lines, rest = data.split(b"\n")
        return [_read(line) for line in lines], deque((rest,))

    def receive(self, data: bytes) -> list[Reply | Notification]:
        """Return the replies and notifications that `data` completes, in order."""
        self.pieces.append(data)
        messages, self.pieces = self.complete()
        return messages


def _read(line: bytes) -> Reply | Notification:
    try:
        message, _ = _decode(line.decode())
    except (ValueError, RecursionError) as problem:
        raise NotAReplyError(f"not JSON: {line[:80]!r}") from problem
    if not isinstance(message, dict):
        raise NotAReplyError(f"no message: {line[:80]!r}")
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
