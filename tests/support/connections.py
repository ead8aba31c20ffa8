"""A connection that remembers what was sent to it, in place of a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from clonepool.protocol.server import RequestId
    from clonepool.service.call import Call


class FakeConnection:
    """What calls need of a connection; see `service.call.Connection`.

    Attributes:
        sent: the lines, decoded.
    """

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.client = f"client {number}"
        self.is_gone = False
        self.open_calls: set[Call] = set()
        self.cancellable: dict[RequestId, Call] = {}
        self.most_leases = 0
        self.sent: list[dict[str, Any]] = []

    def rename(self, name: str) -> None:
        """Remember what the client calls itself."""
        self.client = name

    def send(self, line: bytes) -> None:
        """Remember a line."""
        self.sent.append(msgspec.json.decode(line))

    @property
    def errors(self) -> list[str]:
        """The codes of the errors that calls were answered with."""
        return [line["error"]["data"]["code"] for line in self.sent if "error" in line]

    @property
    def results(self) -> list[Any]:
        """The results that calls were answered with."""
        return [line["result"] for line in self.sent if "result" in line]
