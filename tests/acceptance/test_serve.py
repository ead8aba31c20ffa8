"""The real daemon in a process, and real clients."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from clonepool.client import lease
from clonepool.errors import (
    AcquireTimeoutError,
    NotYourLeaseError,
    PoolFullError,
    UnknownTemplateError,
)
from clonepool.postgres.endpoint import from_url
from support.client_sessions import ClientGateway
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import value

if TYPE_CHECKING:
    from pathlib import Path

FORGET_COMMENTS = (
    "WITH gone AS (DELETE FROM blog.tb_comment RETURNING id) SELECT count(*) FROM gone"
)
HOLD_TWO = """
import sys, time, clonepool
client = clonepool.Client(sys.argv[1])
one, other = client.lease("blog"), client.lease("blog")
print(one.database, other.database, flush=True)
time.sleep(600)
"""


def test_each_lease_has_a_database_of_its_own(shared_daemon: Daemon) -> None:
    with lease("blog", socket_path=str(shared_daemon.socket)) as one:
        assert value(one.url, "SELECT count(*) FROM blog.tb_user") == 40
        assert value(one.url, "SELECT current_database()") == one.database
        assert one.env["DATABASE_URL"] == one.url
        assert one.env["PGDATABASE"] == one.database
        value(one.url, FORGET_COMMENTS)
        with lease("blog", socket_path=str(shared_daemon.socket)) as other:
            assert value(other.url, "SELECT count(*) FROM blog.tb_comment") == 180


def test_leaked_sessions_are_named_at_release(shared_daemon: Daemon) -> None:
    async def leak(url: str) -> None:
        endpoint = from_url(url)
        session = await ClientGateway(endpoint, "leaky").connect(endpoint.maintenance)
        await session.value("SELECT 42")
        leaked = await anyio.to_thread.run_sync(lambda: held.release(report=True))
        assert leaked is not None
        assert [(s["application_name"], s["state"]) for s in leaked] == [("leaky", "idle")]
        assert "42" in leaked[0]["query"]
        await session.close()

    with shared_daemon.client() as client:
        held = client.lease("blog", timeout=30)
        anyio.run(leak, held.url)


def test_errors_arrive_with_their_codes(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        with pytest.raises(UnknownTemplateError, match="'blag'") as caught:
            client.lease("blag")
        assert caught.value.remedy == "known templates: blog"
        held = client.lease("blog", timeout=30)
        with shared_daemon.client() as other, pytest.raises(NotYourLeaseError):
            other.call("release", lease=held.database)
        held.release()
        with pytest.raises(NotYourLeaseError):
            held.release()


def test_at_the_limit_acquires_wait_in_order_and_end_at_their_deadline(
    shared_daemon: Daemon,
) -> None:
    client = shared_daemon.client()
    held = [client.lease("blog", timeout=30) for _ in range(12)]
    began = time.monotonic()
    with shared_daemon.client() as late, pytest.raises(PoolFullError, match="12 of 12"):
        late.lease("blog", timeout=0.3)
    assert 0.29 < time.monotonic() - began < 1.0
    seen = threading.Event()

    def wait(number: int) -> None:
        with shared_daemon.client() as waiting:
            granted = waiting.lease("blog", timeout=60, label=f"waiter {number}")
            assert granted.source == "waited"
            seen.wait(60)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        eventually(lambda number=number: shared_daemon.pool()["waiting"] == number)  # type: ignore[misc]
    for lease_ in held:
        lease_.release()
    eventually(lambda: shared_daemon.pool()["leased"] == 3)
    served = [lease_["label"] for lease_ in client.call("leases")]  # the oldest first
    seen.set()
    for thread in threads:
        thread.join(30)
    client.close()
    assert served == ["waiter 0", "waiter 1", "waiter 2"]
    eventually(shared_daemon.at_rest)


def test_a_waiter_that_goes_away_costs_no_clone(shared_daemon: Daemon) -> None:
    client = shared_daemon.client()
    held = [client.lease("blog", timeout=30) for _ in range(12)]
    gone = socket.socket(socket.AF_UNIX)
    gone.connect(str(shared_daemon.socket))
    gone.sendall(b'{"id":1,"method":"acquire","params":{"template":"blog"}}\n')
    eventually(lambda: shared_daemon.pool()["waiting"] == 1)
    gone.close()
    eventually(lambda: shared_daemon.pool()["waiting"] == 0)
    for lease_ in held:
        lease_.release()
    client.close()
    eventually(shared_daemon.at_rest)
    assert shared_daemon.pool()["leased"] == 0


def test_a_killed_clients_clones_come_back(shared_daemon: Daemon) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_TWO, str(shared_daemon.socket)], stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        names = client.stdout.readline().decode().split()
        assert shared_daemon.pool()["leased"] == 2
        client.send_signal(signal.SIGKILL)
    eventually(shared_daemon.at_rest)
    assert len(names) == 2
    assert shared_daemon.pool()["leased"] == 0


def test_garbage_huge_lines_wrong_shapes_and_unknown_methods_never_end_the_daemon(
    shared_daemon: Daemon,
) -> None:
    for garbage in (
        b"\n\n\nhello\n",
        b"\x00\xff\xfe" * 100 + b"\n",
        b"x" * (2 * 1024 * 1024),
        b"[" * 500_000 + b"\n",
        b'{"id":1,"method":"drop_everything"}\n',
        b'{"id":1,"method":"release","params":{"lease":5}}\n',
        b'{"id":1,"method":"acquire","params":{"template":"blog","surprise":1}}\n',
        b'{"id":1,"method":"acq',
    ):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(shared_daemon.socket))
            rude.settimeout(5)
            try:
                rude.sendall(garbage)
                rude.shutdown(socket.SHUT_WR)
                answer = rude.recv(65_536)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
            for line in answer.splitlines():
                assert "error" in json.loads(line)
    with shared_daemon.client() as client:
        assert client.call("ping") == {}
    assert shared_daemon.pool()["leased"] == 0


def test_a_half_sent_request_can_be_finished_later(shared_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(shared_daemon.socket))
        for piece in (b'{"id":', b'1,"meth', b'od":"ping"}', b"\n"):
            slow.sendall(piece)
        assert json.loads(slow.recv(4096)) == {"jsonrpc": "2.0", "id": 1, "result": {}}


def test_pipelined_requests_are_answered_each_under_its_id(shared_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as eager:
        eager.connect(str(shared_daemon.socket))
        eager.sendall(b"".join(b'{"id":%d,"method":"ping"}\n' % n for n in range(100)))
        stream = eager.makefile("rb")
        assert [json.loads(stream.readline())["id"] for _ in range(100)] == list(range(100))


def test_a_client_that_reads_nothing_does_not_fill_the_memory(shared_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(shared_daemon.socket))
        deaf.settimeout(0.5)
        request = b'{"id":1,"method":"status"}\n' * 1_000

        def shout() -> None:
            for _ in range(2_000):
                deaf.sendall(request)

        with pytest.raises(TimeoutError):
            shout()
        with shared_daemon.client() as client:
            assert client.call("ping") == {}


def test_hello_agrees_on_the_version_and_names_the_client(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        hello = client.call("hello", protocol=1, client="me")
        assert hello["protocol"] == 1
        held = client.call("acquire", template="blog", timeout=30)
        assert client.call("leases")[-1]["label"] == "me"
        client.call("release", lease=held["lease"])


def test_the_list_of_leases_keeps_tokens_and_passwords_to_itself(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        held = client.lease("blog", timeout=30)
        told = json.dumps([client.call("leases"), client.call("status"), client.call("templates")])
        assert held.token not in told
        assert held.password not in told
        held.release()


def test_the_log_keeps_secrets_to_itself(shared_daemon: Daemon) -> None:
    with shared_daemon.client() as client:
        held = client.lease("blog", timeout=30)
        held.release()
    text = shared_daemon.log.read_text()
    assert held.token not in text
    assert held.password not in text


def test_a_failing_template_is_told_to_every_acquire_at_once(place: Path) -> None:
    (place / "bad.sql").write_text("SELECT 1;\nSELEKT 2;\n")
    config = CONFIG + f'[templates.bad]\nsql = ["{place}/bad.sql"]\nmin_ready = 1\n'
    with running_daemon(config) as daemon, daemon.client() as client:
        eventually(lambda: daemon.pool("bad")["phase"] == "failed")
        began = time.monotonic()
        with pytest.raises(Exception, match=r"bad\.sql:2: syntax error.*SELEKT 2") as caught:
            client.lease("bad", timeout=30)
        assert time.monotonic() - began < 1.0
        assert getattr(caught.value, "code", "") == "template_failed"
        client.lease("blog", timeout=30).release()


def test_a_timeout_of_zero_is_answered_at_once(shared_daemon: Daemon) -> None:
    client = shared_daemon.client()
    held = []

    def take_all() -> None:
        for _ in range(13):
            held.append(client.lease("blog", timeout=0))  # noqa: PERF401 - the last one raises

    with pytest.raises((AcquireTimeoutError, PoolFullError)):
        take_all()
    for lease_ in held:
        lease_.release()
    client.close()
    eventually(shared_daemon.at_rest)
