"""Hostile clients of the metrics port affect neither leases nor the scrape."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.daemons import Daemon, eventually, free_port, running_daemon
from support.outages import (
    COUNT,
    assert_recovers,
    get,
    halted,
    is_whole,
    logged,
    metric,
    rows,
    template,
    value_in,
)
from support.resource_errors import connections_to, is_cut, strangers

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF_A_HEADER = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Half"
WHOLE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
MOST = 32
"""http.max_connections, as it is by default."""
A_TURN = 8
"""Connections that are taken before one is cut for them."""


class Port(NamedTuple):
    daemon: Daemon
    number: int


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    number = free_port()
    config = f'[http]\nlisten = "127.0.0.1:{number}"\nhosts = ["scraped.example"]\n'
    with running_daemon(config + template(min_ready=3)) as daemon:
        eventually(lambda: is_whole(daemon))
        yield Port(daemon, number)


def lease_and_release(daemon: Daemon) -> None:
    with daemon.client() as client:
        lease = client.lease("blog", timeout=20)
        assert rows(lease.url, COUNT) == [{"count": 40}]
        lease.release()


@pytest.mark.parametrize("say", [b"", HALF_A_HEADER], ids=["nothing", "half a header"])
def test_connections_that_ask_nothing_take_few_files_and_are_cut(port: Port, say: bytes) -> None:
    lines = port.daemon.log.read_text().count("\n")
    with strangers(port.number, 1200, say) as there:
        eventually(lambda: is_cut(there[0]), what="the first has given way to others")
        assert connections_to(port.number) <= MOST + A_TURN
        for _ in range(5):
            assert get(port.number, "/metrics")[0] == 200
            lease_and_release(port.daemon)
        assert connections_to(port.number) <= MOST + A_TURN
        eventually(
            lambda: connections_to(port.number) == 0, 60, "all are cut that the daemon knows of"
        )
    assert_recovers(port.daemon)
    assert port.daemon.log.read_text().count("\n") <= lines + 3


def test_a_header_that_comes_byte_by_byte_wins_no_time(port: Port) -> None:
    late = 'clonepool_http_connections_cut_total{reason="late"}'
    before = metric(port.number, late)
    with socket.create_connection(("127.0.0.1", port.number)) as slow:
        slow.sendall(HALF_A_HEADER)
        deadline = time.monotonic() + 60
        while not is_cut(slow):
            assert time.monotonic() < deadline
            time.sleep(0.2)  # sleeps: byte by byte
            try:
                slow.send(b"x")
            except OSError:
                break
    assert metric(port.number, late) > before


def test_a_client_that_reads_no_response_is_cut(port: Port) -> None:
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port.number))
        deaf.settimeout(0.2)

        def ask() -> bool:
            try:
                deaf.send(WHOLE)
            except TimeoutError:
                return False
            except OSError:
                return True
            time.sleep(0.01)  # sleeps: paces what is asked
            return False

        eventually(ask, 100, "the connection is cut")
        eventually(lambda: connections_to(port.number) == 0)
    assert get(port.number, "/healthz")[0] == 200


def test_endless_requests_take_only_a_part_of_the_daemons_time(port: Port) -> None:
    enough = threading.Event()

    def hammer() -> None:
        while not enough.is_set():
            try:
                get(port.number, "/metrics")
            except OSError:
                continue

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        used = _processor_seconds(port.daemon)
        began = time.monotonic()
        for _ in range(10):
            lease_and_release(port.daemon)
        eventually(lambda: time.monotonic() > began + 3)
        share = (_processor_seconds(port.daemon) - used) / (time.monotonic() - began)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert share < 0.7
    assert_recovers(port.daemon)


def _processor_seconds(daemon: Daemon) -> float:
    assert daemon.process is not None
    stat = Path(f"/proc/{daemon.process.pid}/stat").read_text(encoding="ascii", errors="replace")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def ask(port: int, host: str, path: str = "/metrics") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest("GET", path, skip_host=True)
        if host:
            connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/none"])
def test_a_page_whose_name_was_made_to_mean_this_machine_reads_nothing(
    port: Port, path: str
) -> None:
    for host in ("evil.example", "evil.example:9849", "127.0.0.1.evil.example", "localhost.evil"):
        status, text = ask(port.number, host, path)
        assert status == 421, host
        assert "clonepool_" not in text
        assert "http.hosts" in text


def test_local_names_addresses_and_configured_names_are_answered(port: Port) -> None:
    names = ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "192.0.2.7", socket.gethostname()]
    for name in (*names, "scraped.example", "Scraped.Example."):
        for host in (name, f"{name}:{port.number}"):
            assert ask(port.number, host)[0] == 200, host


def test_a_wrong_request_is_refused_without_a_line_in_the_log(port: Port) -> None:
    before = port.daemon.log.read_text()
    for wrong in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * 100_000, WHOLE[:-2] * 2):
        with socket.create_connection(("127.0.0.1", port.number)) as visitor:
            visitor.sendall(wrong)
            visitor.shutdown(socket.SHUT_WR)
            eventually(lambda visitor=visitor: is_cut(visitor), 60)  # type: ignore[misc]
    assert port.daemon.log.read_text() == before


def late_beats(port: int) -> float:
    """Return how often the event loop was more than half a second late."""
    lag, scraped = "clonepool_event_loop_lag_seconds_bucket", get(port, "/metrics")[1]
    return value_in(scraped, f'{lag}{{le="+Inf"}}') - value_in(scraped, f'{lag}{{le="0.5"}}')


def test_a_body_of_many_small_chunks_delays_no_other_request(port: Port) -> None:
    head = b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with ExitStack() as stack:
        senders = []
        for _ in range(8):
            sender = stack.enter_context(socket.create_connection(("127.0.0.1", port.number)))
            sender.sendall(head)
            senders.append(sender)
        before = late_beats(port.number)
        for sender in senders:
            with suppress(OSError):
                sender.sendall(b"1\r\nx\r\n" * 200_000)
        for sender in senders:
            eventually(lambda sender=sender: is_cut(sender), 60)  # type: ignore[misc]
        lease_and_release(port.daemon)
        assert late_beats(port.number) == before
    assert metric(port.number, 'clonepool_http_connections_cut_total{reason="large"}') >= 8


def test_how_late_the_event_loop_was_is_measured(port: Port) -> None:
    assert port.daemon.process is not None
    sample = "clonepool_event_loop_lag_seconds_sum"
    eventually(lambda: metric(port.number, "clonepool_event_loop_lag_seconds_count") > 4)
    before = metric(port.number, sample)
    with halted(port.daemon.process.pid):
        time.sleep(1.5)  # sleeps: so late is the loop, and that is measured
    eventually(lambda: metric(port.number, sample) > before + 1.0)


def test_leases_keep_their_files_while_strangers_hold_the_port(port: Port) -> None:
    with strangers(port.number, 200), port.daemon.client() as client:
        held = [client.lease("blog", timeout=30) for _ in range(12)]
        assert metric(port.number, 'clonepool_short{resource="files"}') == 0
        for lease in held:
            lease.release()
    assert_recovers(port.daemon)
    assert not logged(port.daemon, "machine.short")
