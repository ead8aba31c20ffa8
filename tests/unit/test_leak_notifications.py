"""Leaks are reported as notifications: within the limits, and to connected clients."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from clonepool.observe.metrics import Metrics
from clonepool.service.api.listener import Listener
from clonepool.service.api.peer import MAX_UNREAD_BYTES, Peer
from clonepool.service.call import Call
from clonepool.service.release_reports import ReleaseReports

LEFT: list[dict[str, object]] = [
    {"pid": 7, "application_name": "pool", "state": "idle", "query": "SELECT 42"}
]


class Transport:
    """Records what is written, of which some bytes stay unread."""

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
    listener = Listener.__new__(Listener)
    listener.metrics = Metrics(CollectorRegistry(), [])
    peer = Peer(number, cast("Any", None), listener)
    peer._transport = cast("Any", transport)
    listener.peers = {number: peer}
    return listener


def release_of(listener: Listener) -> ReleaseReports:
    """Have a client release a lease without asking for a report."""
    reports = ReleaseReports(listener)
    reports.expect("blog", "clone", 1)
    return reports


def test_it_says_what_of_which_clone() -> None:
    transport = Transport(0)
    release_of(listener_of(transport)).lease_left("clone", LEFT)
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
    release_of(listener_of(transport)).lease_left("clone", leaked)
    assert transport.written == []


def test_it_counts_against_what_a_client_may_leave_unread() -> None:
    transport = Transport(MAX_UNREAD_BYTES + 1)
    release_of(listener_of(transport)).lease_left("clone", LEFT)
    assert transport.aborted


def test_a_connection_that_is_gone_is_told_nothing() -> None:
    transport = Transport(0)
    listener = listener_of(transport)
    reports = release_of(listener)
    reports.expect("blog", "other", 2)
    assert reports.is_awaited("clone")
    assert not reports.is_awaited("other")
    listener.peers.clear()
    reports.lease_left("clone", LEFT)
    assert transport.written == []


def test_leaks_of_a_later_lease_on_the_same_clone_are_not_reported_to_the_former_holder() -> None:
    transport = Transport(0)
    reports = release_of(listener_of(transport))
    reports.expect("blog", "clone", 2)  # the holder is not connected any more
    reports.lease_left("clone", LEFT)
    assert transport.written == []


def test_a_release_that_asked_for_a_report_is_answered_by_it_once() -> None:
    transport = Transport(0)
    listener = listener_of(transport)
    reports = ReleaseReports(listener)
    reports.owe("blog", "clone", Call(listener.peers[1], 1, 7))
    assert reports.owed == 1
    reports.lease_left("clone", LEFT)
    reports.lease_left("clone", [])
    (line,) = map(json.loads, transport.written)
    assert line["id"] == 7
    assert line["result"]["leaked"] == [{**LEFT[0], "what": ""}]
    assert reports.owed == 0
