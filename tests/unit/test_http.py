from __future__ import annotations

import socket

import pytest

from clonepool.errors import AlreadyRunningError, ConfigError
from clonepool.service.http import server as http


def test_both_kinds_of_loopback_address_can_be_bound() -> None:
    with http.bind("127.0.0.1:0") as bound:
        assert bound.family is socket.AF_INET
    if socket.has_dualstack_ipv6():
        with http.bind("[::1]:0") as bound:
            assert bound.family is socket.AF_INET6


def test_a_taken_port_and_a_wrong_address_are_different_mistakes() -> None:
    with http.bind("127.0.0.1:0") as bound:
        port = bound.getsockname()[1]
        with pytest.raises(AlreadyRunningError, match="in use"):
            http.bind(f"127.0.0.1:{port}")
    with pytest.raises(ConfigError):
        http.bind("no.such.host.invalid:1")
