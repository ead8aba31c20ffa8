"""What leases left is told like any notification: within the limits, and to whoever is there."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from clonepool.observe.metrics import Metrics
from clonepool.service.api.listener import MAX_UNREAD_BYTES, Listener, Peer

LEFT: list[dict[str, object]] = [
    {"pid": 7, "application_name": "pool", "state": "idle", "query": "SELECT 42"}
]


class Transport:
    """Notes what is written, of which so many bytes are not read."""

    def __init__(self, unread: int) -> None:
        self.written: list[bytes] = []
        self.aborted = False
        self._unread = unread

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, line: bytes) -> None:
        self.written.append(line)

    def get_write_buffer_size(self) -> int:
        return self._unread

    def abort(self) -> None:
        self.aborted = True


def listener_of(transport: Transport, number: int = 1) -> Listener:
    """Return as much of a listener as tells one client something."""
    listener = cast("Listener", SimpleNamespace(metrics=Metrics(CollectorRegistry(), []), peers={}))
    peer = Peer(number, cast("Any", None), cast("Any", None), listener)
    peer._transport = cast("Any", transport)
    listener.peers[number] = peer
    return listener


def tell(listener: Listener, leaked: list[dict[str, object]] | None) -> None:
    told = Listener.leaks_to(listener, 1, "blog", "clone")
    assert told is not None
    told(leaked)


def test_it_says_what_of_which_clone() -> None:
    transport = Transport(0)
    tell(listener_of(transport), LEFT)
    (line,) = map(json.loads, transport.written)
    assert line["method"] == "lease.leaked"
    assert line["params"] == {
        "template": "blog", "database": "clone", "leaked": [{**LEFT[0], "what": ""}],
    }  # fmt: skip
    assert not transport.aborted


@pytest.mark.parametrize("leaked", [None, []])
def test_of_nothing_and_of_what_is_not_known_nothing_is_said(
    leaked: list[dict[str, object]] | None,
) -> None:
    transport = Transport(0)
    tell(listener_of(transport), leaked)
    assert transport.written == []


def test_it_counts_against_what_a_client_may_leave_unread() -> None:
    transport = Transport(MAX_UNREAD_BYTES + 1)
    tell(listener_of(transport), LEFT)
    assert transport.aborted


def test_a_connection_that_is_gone_is_told_nothing() -> None:
    transport = Transport(0)
    listener = listener_of(transport)
    assert Listener.leaks_to(listener, 2, "blog", "clone") is None
    told = Listener.leaks_to(listener, 1, "blog", "clone")
    assert told is not None
    listener.peers.clear()
    told(LEFT)
    assert transport.written == []
