"""How the Python client releases leases: at once, with later reports of leaks, and exchanged."""

from __future__ import annotations

import gc
import signal
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from clonepool import LeakWarning
from clonepool.client import Client
from clonepool.errors import ConnectionLostError, NotYourLeaseError, UnknownTemplateError
from support.daemons import eventually
from support.scripted_daemon import ScriptedDaemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SESSION = {
    "pid": 7, "application_name": "pool\x1b[2J", "state": "idle", "query": "SELECT 42", "what": "",
}  # fmt: skip
CHANGE = {
    "pid": 0, "application_name": "", "state": "", "query": "", "what": "role x was made; undone",
}  # fmt: skip


@pytest.fixture
def daemon(place: Path) -> Iterator[ScriptedDaemon]:
    scripted = ScriptedDaemon(place, clones=1)
    yield scripted
    scripted.close()


@pytest.fixture
def client(daemon: ScriptedDaemon) -> Iterator[Client]:
    with Client(daemon.path, name="test") as connected:
        yield connected


# What was left ----------------------------------------------------------------------------


def test_a_release_reports_when_it_is_asked_to_and_claims_nothing_otherwise(
    daemon: ScriptedDaemon, client: Client
) -> None:
    assert client.lease("blog", label="x").release() is None
    assert client.lease("blog", label="x").release(report=True) == []
    daemon.leaves = [SESSION]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert client.lease("blog", label="x").release(report=True) == [SESSION]
        client.call("ping")


@pytest.mark.parametrize("in_block", [False, True])
def test_leaks_are_told_by_a_warning_out_of_the_next_call_that_reads(
    daemon: ScriptedDaemon, client: Client, in_block: bool
) -> None:
    daemon.leaves = [SESSION, CHANGE]
    lease = client.lease("blog", label="leaky")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if in_block:
            with lease:
                pass
        else:
            lease.release()
        daemon.leaves = []
        client.call("ping")
    (warning,) = caught
    assert warning.category is LeakWarning
    assert issubclass(LeakWarning, ResourceWarning)
    assert warning.filename == __file__, "it points to the code that uses the client"
    told = str(warning.message)
    for part in ("lease of leaky", "clone of blog", "SELECT 42", "pid 7", "role x was made; undon"):
        assert part in told
    assert "\x1b" not in told, "a terminal would obey it"


def test_of_many_leaks_a_few_are_named(daemon: ScriptedDaemon, client: Client) -> None:
    daemon.leaves = [{**SESSION, "pid": number} for number in range(1, 9)]
    client.lease("blog", label="x").release()
    with pytest.warns(LeakWarning, match="and 3 more") as caught:
        client.call("ping")
    assert str(caught[0].message).count("SELECT 42") == 5


def test_a_listener_hears_of_leaks_too(daemon: ScriptedDaemon) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    daemon.leaves = [SESSION]
    with Client(daemon.path, on_notification=lambda *told: heard.append(told)) as client:
        client.lease("blog", label="x").release()
        with pytest.warns(LeakWarning):
            client.call("ping")
    assert heard == [
        ("lease.leaked", {"template": "blog", "database": "x", "leaked": [SESSION]}),
    ]


def test_a_warning_made_an_error_comes_out_of_the_call_and_holds_nothing(
    daemon: ScriptedDaemon, client: Client
) -> None:
    daemon.leaves = [SESSION]
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeakWarning)
        client.lease("blog", label="x").release()
        daemon.leaves = []
        with pytest.raises(LeakWarning):
            client.lease("blog", label="next")
    eventually(lambda: not daemon.held and not daemon.waiting)
    client.lease("blog", label="after").release()


# One for another --------------------------------------------------------------------------


class Counting:
    """Sends, and counts how often."""

    def __init__(self, client: Client) -> None:
        self._send = client._connection._send
        self.calls: list[bytes] = []
        client._connection._send = self  # type: ignore[assignment]

    def __call__(self, data: bytes, flags: int) -> int:
        self.calls.append(data)
        return self._send(data, flags)


def test_an_exchange_is_one_write_and_the_lease_is_another(
    daemon: ScriptedDaemon, client: Client
) -> None:
    lease = client.lease("blog", label="first")
    token, sent = lease.token, Counting(client)
    lease.exchange(label="second")
    assert len(sent.calls) == 1
    assert sent.calls[0].count(b"\n") == 2
    assert daemon.seen == ["acquire", "release", "acquire"]
    assert lease.token != token
    assert lease.database == "second"
    assert daemon.held == {lease.token: "second"}
    lease.release()
    assert not daemon.held


def test_the_end_of_the_block_gives_back_what_was_taken_last(
    daemon: ScriptedDaemon, client: Client
) -> None:
    with client.lease("blog", label="0") as lease:
        for number in range(1, 4):
            lease.exchange(label=str(number))
            assert list(daemon.held.values()) == [str(number)]
    assert not daemon.held


def test_an_exchange_takes_the_options_of_an_acquire(
    daemon: ScriptedDaemon, client: Client
) -> None:
    lease = client.lease("blog", label="first")
    sent = Counting(client)
    lease.exchange("shop", timeout=0, ttl=5.0, fresh=True, stale_ok=True, progress=True)
    for option in (
        b'"template":"shop"', b'"timeout":0', b'"ttl":5.0', b'"label":"test"', b'"fresh":true',
        b'"stale_ok":true', b'"progress":true',
    ):  # fmt: skip
        assert option in sent.calls[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del lease
        gc.collect()  # with a TTL, any process that knows the token may use it
    assert list(daemon.held.values()) == ["test"]


def test_when_there_is_no_other_the_first_is_given_back_all_the_same(
    daemon: ScriptedDaemon, client: Client
) -> None:
    lease = client.lease("blog", label="first")
    with pytest.raises(UnknownTemplateError):
        lease.exchange("unknown")
    eventually(lambda: not daemon.held)
    with pytest.raises(NotYourLeaseError):
        lease.release()


@pytest.mark.parametrize("template", ["blog", "never", "unknown"])
def test_a_lease_that_had_ended_is_told_of_and_no_other_is_held(
    daemon: ScriptedDaemon, client: Client, template: str
) -> None:
    """Whether the other was granted, waits, or is refused."""
    lease = client.lease("blog", label="first")
    client.call("release", lease=lease.token)
    with pytest.raises(NotYourLeaseError):
        lease.exchange(template)
    client.call("ping")
    eventually(lambda: not daemon.held and not daemon.waiting)
    assert not client._connection._pending


def test_an_exchange_that_is_interrupted_holds_neither(
    daemon: ScriptedDaemon, client: Client
) -> None:
    lease = client.lease("blog", label="first")

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    def ring() -> None:
        eventually(lambda: bool(daemon.waiting))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handler)
    ringing = threading.Thread(target=ring)
    ringing.start()
    try:
        with pytest.raises(KeyboardInterrupt), lease:
            lease.exchange("never")
    finally:
        ringing.join(20)
        signal.signal(signal.SIGALRM, before)
    eventually(lambda: not daemon.held and not daemon.waiting)


def test_what_a_forgotten_lease_was_exchanged_for_is_given_back(
    daemon: ScriptedDaemon, client: Client
) -> None:
    lease = client.lease("blog", label="first")
    lease.exchange(label="second")
    with pytest.warns(ResourceWarning, match="the lease of second, a clone of blog"):
        del lease
    eventually(lambda: not daemon.held)


def test_each_of_many_threads_exchanges_its_own(place: Path) -> None:
    daemon = ScriptedDaemon(place, clones=3)

    def work(number: int) -> None:
        try:
            with client.lease("blog", label=f"{number}") as lease:
                for turn in range(30):
                    lease.exchange(label=f"{number} {turn}")
                    assert daemon.held[lease.token] == lease.database == f"{number} {turn}"
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failed.append(error)

    failed: list[BaseException] = []
    with Client(daemon.path) as client:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
    assert failed == []
    assert not daemon.held
    daemon.close()


@pytest.mark.parametrize("reconnected", [False, True])
def test_a_client_that_reconnects_gets_its_other_lease_over_the_next_connection(
    daemon: ScriptedDaemon, reconnected: bool
) -> None:
    with Client(daemon.path, reconnect=20.0) as client:
        lease = client.lease("blog", label="first")
        with pytest.raises(ConnectionLostError):
            client.call("die")
        if reconnected:
            client.lease("blog", label="between").release()
        lease.exchange(label="second")
        eventually(lambda: list(daemon.held.values()) == ["second"])
        lease.release()
    assert not daemon.held
    assert len(daemon.connections) == 2


def test_a_lasting_lease_whose_connection_is_lost_is_given_back_over_the_next(
    daemon: ScriptedDaemon,
) -> None:
    with Client(daemon.path, reconnect=20.0) as client:
        lease = client.lease("blog", label="first", ttl=60.0)
        token = lease.token
        with pytest.raises(ConnectionLostError):
            client.call("die")
        eventually(lambda: not daemon.held)
        daemon.held[token] = "first"  # it outlives its connection
        lease.exchange(label="second")
        assert list(daemon.held.values()) == ["second"]
        lease.release()
