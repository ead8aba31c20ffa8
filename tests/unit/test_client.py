"""The Python client, against a scripted daemon."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.client import Client
from clonepool.client import sync as sync_module
from clonepool.errors import (
    BadRequestError,
    ClientClosedError,
    ConnectionLostError,
    DaemonNotFoundError,
    NotYourLeaseError,
)
from clonepool.paths import SOCKET_VARIABLE
from support.daemons import eventually
from support.scripted_daemon import ScriptedDaemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Interrupted(BaseException):
    """What a test's timeout raises."""


class Worker(threading.Thread):
    """Something that waits in a thread of its own, and what became of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.outcome = error

    def done(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it still waits"
        return self.outcome


@pytest.fixture
def daemon(place: Path) -> Iterator[ScriptedDaemon]:
    scripted = ScriptedDaemon(place, clones=1)
    yield scripted
    scripted.close()


@pytest.fixture
def client(daemon: ScriptedDaemon) -> Iterator[Client]:
    with Client(daemon.path, name="test") as connected:
        yield connected


def ring_when(condition: Callable[[], Any]) -> None:
    """Send the main thread a signal, as soon as something is so."""
    eventually(lambda: bool(condition()))
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)


@contextlib.contextmanager
def alarm_when(condition: Callable[[], Any], error: BaseException) -> Iterator[None]:
    """Have a signal's handler raise, as soon as something is so."""

    def handler(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    ringing = Worker(lambda: ring_when(condition))
    try:
        yield
    finally:
        ringing.join(20)
        signal.signal(signal.SIGALRM, before)


def is_sent(client: Client) -> bool:
    """Say whether the client waits for nothing but an answer."""
    connection = client._connection
    return bool(connection._pending) and not connection._outgoing


# Threads ----------------------------------------------------------------------------------


def test_a_release_by_one_thread_serves_the_lease_that_another_waits_for(
    daemon: ScriptedDaemon, client: Client
) -> None:
    first = client.lease("blog", label="first")
    waiter = Worker(lambda: client.lease("blog", label="second"))
    eventually(lambda: bool(daemon.waiting))
    first.release()
    second = waiter.done()
    assert second.database == "second"
    second.release()


def test_each_of_many_threads_gets_its_own_answer(daemon: ScriptedDaemon, client: Client) -> None:
    def work(number: int) -> None:
        for turn in range(50):
            label = f"{number} {turn}"
            with client.lease("blog", label=label) as lease:
                assert lease.database == label
                assert list(daemon.held.values()) == [label]

    workers = [Worker(lambda number=number: work(number)) for number in range(8)]  # type: ignore[misc]
    assert [worker.done() for worker in workers] == [None] * 8
    assert not daemon.held


def test_the_role_of_the_reader_goes_on_to_a_thread_that_still_waits(
    daemon: ScriptedDaemon, client: Client
) -> None:
    """The first to wait reads for all; when it has its own answer others must read."""
    held = client.lease("blog", label="held")
    waiters = []
    for number in range(4):
        waiters.append(Worker(lambda number=number: client.lease("blog", label=str(number))))  # type: ignore[misc]
        eventually(lambda: len(daemon.waiting) == len(waiters))
    for number, waiter in enumerate(waiters):
        held.release()
        held = waiter.done()
        assert held.database == str(number)
    held.release()


def test_notifications_are_heard_in_order_and_may_use_the_client(daemon: ScriptedDaemon) -> None:
    heard = []
    clients: list[Client] = []

    def hear(_: str, news: dict[str, Any]) -> None:
        assert clients[0].call("ping") == {}
        heard.append(news["ahead"])

    with Client(daemon.path, on_notification=hear) as client:
        clients.append(client)
        others = [Worker(lambda: [client.call("ping") for _ in range(50)]) for _ in range(3)]
        client.lease("blog", progress=True).release()
        client.call("ping")
        assert [len(other.done()) for other in others] == [50, 50, 50]
        eventually(lambda: len(heard) == 3)
    assert heard == [0, 1, 2]


def test_what_a_listener_raises_ends_the_call_and_takes_its_request_back(
    daemon: ScriptedDaemon,
) -> None:
    def hear(*_: object) -> None:
        raise ZeroDivisionError

    with Client(daemon.path, on_notification=hear) as client:
        with pytest.raises(ZeroDivisionError):
            client.lease("blog", progress=True)
        eventually(lambda: not daemon.held and not daemon.waiting)


# Interrupts -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(), TimeoutError("test")])
def test_an_interrupted_lease_is_taken_back(
    daemon: ScriptedDaemon, client: Client, error: BaseException
) -> None:
    held = client.lease("blog", label="held")
    with alarm_when(lambda: daemon.waiting, error), pytest.raises(type(error)):
        client.lease("blog", label="interrupted")
    eventually(lambda: not daemon.waiting)
    held.release()
    with client.lease("blog", label="next") as following:
        assert following.database == "next"


def test_an_interrupted_define_reset_and_drain_are_taken_back(
    daemon: ScriptedDaemon, client: Client
) -> None:
    definition = client.define("one")
    with alarm_when(lambda: daemon.waiting, Interrupted()), pytest.raises(Interrupted):
        client.define("one")
    eventually(lambda: not daemon.waiting)
    definition.abandon()
    lease = client.lease("blog")
    with alarm_when(lambda: daemon.waiting, Interrupted()), pytest.raises(Interrupted), lease:
        lease.reset(timeout=60)
    eventually(lambda: not daemon.held and not daemon.waiting)
    with alarm_when(lambda: daemon.waiting, Interrupted()), pytest.raises(Interrupted):
        client.call("drain", timeout=60.0)
    eventually(lambda: not daemon.waiting)


def test_what_was_granted_before_it_could_be_taken_back_is_given_back(
    daemon: ScriptedDaemon, client: Client
) -> None:
    daemon.deaf.set()
    threading.Timer(0.3, daemon.deaf.clear).start()
    with alarm_when(lambda: is_sent(client), Interrupted()), pytest.raises(Interrupted):
        client.lease("blog", label="late")
    client.call("ping")
    eventually(lambda: "release" in daemon.seen and not daemon.held)
    assert daemon.seen[0] == "acquire"


def test_a_daemon_that_does_not_answer_holds_up_an_interrupt_for_a_moment_only(
    daemon: ScriptedDaemon, client: Client
) -> None:
    daemon.deaf.set()
    with alarm_when(lambda: is_sent(client), Interrupted()), pytest.raises(Interrupted):
        client.lease("blog", label="late")
    daemon.deaf.clear()
    eventually(lambda: "cancel" in daemon.seen)
    assert client.call("ping") == {}  # which reads the late answer
    eventually(lambda: not daemon.held)


def test_an_older_daemon_that_knows_no_cancel_gets_the_late_lease_back(
    daemon: ScriptedDaemon, client: Client
) -> None:
    daemon.knows_cancel = False
    held = client.lease("blog", label="held")
    with alarm_when(lambda: daemon.waiting, Interrupted()), pytest.raises(Interrupted):
        client.lease("blog", label="late")
    held.release()
    with client.lease("blog", label="next") as lease:
        assert lease.database == "next"
    eventually(lambda: not daemon.held)


def test_a_reader_that_is_interrupted_leaves_its_role_to_another_thread(
    daemon: ScriptedDaemon, client: Client
) -> None:
    held = client.lease("blog", label="held")

    def follow() -> Any:
        eventually(lambda: bool(daemon.waiting))  # the main thread reads
        return client.lease("blog", label="follower")

    follower = Worker(follow)
    with (
        alarm_when(lambda: len(daemon.waiting) == 2, Interrupted()),
        pytest.raises(Interrupted),
    ):
        client.lease("blog", label="reader")
    eventually(lambda: [each[3]["label"] for each in daemon.waiting] == ["follower"])
    held.release()
    follower.done().release()


_POINTS = frozenset({"CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD", "CALL_KW"})


class Interrupter:
    """Raises at the n-th point of the client's code at which CPython lets an exception in."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._names: dict[Any, dict[int, str]] = {}
        self._last: dict[Any, str] = {}
        self.struck = ""

    def __call__(self, frame: Any, event: str, _: object) -> Any:
        if self.struck or not _is_the_clients(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self._count(frame)
        if event == "opcode":
            if self._last.pop(frame, "") in _POINTS:
                self._count(frame)
            self._last[frame] = self._name(frame)
        return self

    def _count(self, frame: Any) -> None:
        self._left -= 1
        if self._left < 0:
            self.struck = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
            self._last.clear()  # the frames, and what they hold
            sys.settrace(None)
            raise Interrupted

    def _name(self, frame: Any) -> str:
        import dis  # noqa: PLC0415 - of no use elsewhere

        code = frame.f_code
        if code not in self._names:
            self._names[code] = {each.offset: each.opname for each in dis.get_instructions(code)}
        return self._names[code].get(frame.f_lasti, "")


def _is_the_clients(file: str) -> bool:
    return "/clonepool/client/" in file or file.endswith("/protocol/client.py")


def _lease(client: Client) -> None:
    client.lease("blog", label="x").release()


def _define(client: Client) -> None:
    with client.define("one"):
        pass


def _reset(client: Client) -> None:
    with client.lease("blog", label="x") as lease:
        lease.reset()


def _exchange(client: Client) -> None:
    with client.lease("blog", label="x") as lease:
        lease.exchange(label="y")


@pytest.fixture
def collected_garbage() -> Iterator[None]:
    """Finalize no leases of earlier tests in the meantime; releases need no collector.

    Python ignores an exception at the first instruction of a finalizer.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("deed", [_lease, _define, _reset, _exchange])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("collected_garbage")
def test_wherever_an_interrupt_strikes_nothing_stays_held_and_the_client_goes_on(
    daemon: ScriptedDaemon, client: Client, deed: Callable[[Client], None]
) -> None:
    number, struck = 0, "anywhere"
    while struck:
        interrupter = Interrupter(number)
        sys.settrace(interrupter)
        try:
            deed(client)
        except Interrupted as error:
            error.__traceback__ = None
        finally:
            sys.settrace(None)
        struck = interrupter.struck
        assert client.call("ping") == {}, struck  # reads what came late
        client.call("ping")
        eventually(
            lambda: not (daemon.held or daemon.waiting or daemon.filling),
            5.0,
            f"all is given back after point {number}, {struck}: {daemon.held} {daemon.waiting}",
        )
        assert not client._connection._pending, (number, struck)
        number += 1
    assert number > 50
    assert not daemon.garbage
    assert not client._connection._busy
    assert not [(each.method, each.reply) for each in client._connection._pending.values()]
    assert not client._connection._outgoing


def test_a_request_that_went_out_in_part_is_finished_by_the_next(daemon: ScriptedDaemon) -> None:
    with Client(daemon.path) as client:
        client._connection._send = _Halting(client._connection._send)  # type: ignore[assignment]
        with pytest.raises(Interrupted):
            client.call("ping")
        assert client.call("ping") == {}
        assert client.lease("blog", label="x").release(report=True) == []
    assert not daemon.garbage


class _Halting:
    """Sends half of a line, then an interrupt comes."""

    def __init__(self, send: Callable[..., int]) -> None:
        self._send = send
        self._calls = 0

    def __call__(self, data: bytes, flags: int) -> int:
        self._calls += 1
        if self._calls == 2:
            raise Interrupted
        return self._send(data[: len(data) // 2] if self._calls == 1 else data, flags)


# The end ----------------------------------------------------------------------------------


def test_the_default_timeout_of_sockets_does_not_matter(daemon: ScriptedDaemon) -> None:
    socket.setdefaulttimeout(0.05)
    try:
        with Client(daemon.path) as client:
            held = client.lease("blog", label="held")
            threading.Timer(0.3, held.release).start()
            client.lease("blog", label="patient").release()
    finally:
        socket.setdefaulttimeout(None)


def test_a_closed_client_fails_waiting_and_later_calls(
    daemon: ScriptedDaemon,
) -> None:
    client = Client(daemon.path, reconnect=5.0)
    lease = client.lease("blog", label="held")
    waiters = [Worker(lambda: client.lease("blog")) for _ in range(3)]
    eventually(lambda: len(daemon.waiting) == 3)
    client.close()
    assert [type(waiter.done()) for waiter in waiters] == [ClientClosedError] * 3
    began = time.monotonic()
    for use in (lambda: client.lease("blog"), lambda: client.call("ping"), lease.release):
        with pytest.raises(ClientClosedError, match="the client is closed"):
            use()
    assert time.monotonic() - began < 5.0, "it was tried again"
    client.close()
    assert client._connection.socket.fileno() == -1
    eventually(lambda: not daemon.held)


def test_a_signal_handler_may_close_the_client(daemon: ScriptedDaemon) -> None:
    client = Client(daemon.path)
    before = signal.signal(signal.SIGALRM, lambda *_: client.close())
    ringing = Worker(lambda: ring_when(lambda: daemon.waiting))
    try:
        with pytest.raises(ClientClosedError):
            client.lease("never")
    finally:
        ringing.done()
        signal.signal(signal.SIGALRM, before)
    assert client._connection.socket.fileno() == -1


def test_a_signal_handler_that_asks_in_the_middle_of_a_call_is_told_and_not_hung(
    daemon: ScriptedDaemon, client: Client
) -> None:
    lease = client.lease("blog", label="held")
    before = signal.signal(signal.SIGALRM, lambda *_: lease.release())
    ringing = Worker(lambda: ring_when(lambda: daemon.waiting))
    try:
        with pytest.raises(RuntimeError, match="signal handler"):
            client.lease("never")
    finally:
        ringing.done()
        signal.signal(signal.SIGALRM, before)
    eventually(lambda: not daemon.held and not daemon.waiting)


def test_the_end_of_the_daemon_is_reported_to_all_waiters(daemon: ScriptedDaemon) -> None:
    client = Client(daemon.path)
    waiters = [Worker(lambda: client.lease("never")) for _ in range(3)]
    eventually(lambda: len(daemon.waiting) == 3)
    with pytest.raises(ConnectionLostError, match="the daemon closed"):
        client.call("die")
    outcomes = [waiter.done() for waiter in waiters]
    assert [type(outcome) for outcome in outcomes] == [ConnectionLostError] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    client.close()


def test_threads_that_reconnect_at_once_share_one_new_connection(daemon: ScriptedDaemon) -> None:
    with Client(daemon.path, reconnect=20.0) as client:
        waiters = [Worker(lambda: client.lease("blog", label="x")) for _ in range(4)]
        eventually(lambda: len(daemon.held) + len(daemon.waiting) == 4)
        with pytest.raises(ConnectionLostError):
            client.call("die")
        for _ in waiters:
            eventually(lambda: any(not each.is_alive() for each in waiters))
            (first, *_) = [each for each in waiters if not each.is_alive()]
            waiters.remove(first)
            with contextlib.suppress(
                NotYourLeaseError, ConnectionLostError
            ):  # it was granted before the end
                first.done().release()
    assert len(daemon.connections) == 2


def test_what_the_daemon_could_not_even_refuse_is_not_sent(client: Client) -> None:
    with pytest.raises(BadRequestError, match="UTF-8"):
        client.lease("blog", label="\udc80")
    with pytest.raises(BadRequestError, match="bytes"):
        client.call("define", hash="x" * (2 * 1024 * 1024))
    assert client.call("ping") == {}


# Leases that were not released -----------------------------------------------------------------


def test_a_lease_that_is_garbage_is_warned_of_and_released(
    daemon: ScriptedDaemon, client: Client
) -> None:
    with pytest.warns(ResourceWarning, match="the lease of forgotten, a clone of blog"):
        client.lease("blog", label="forgotten")
    eventually(lambda: not daemon.held)


def test_leases_that_end_otherwise_are_not_told_of(daemon: ScriptedDaemon) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Client(daemon.path) as client:
            with client.lease("blog", label="block"):
                pass
            client.lease("blog", label="released").release()
            client.lease("blog", label="lasting", ttl=60.0)
            assert list(daemon.held.values()) == ["lasting"]
            daemon.held.clear()
            renewed = client.lease("blog", label="renewed")
            renewed.renew(60.0)
            del renewed
            assert list(daemon.held.values()) == ["renewed"]
            daemon.held.clear()
            closed = client.lease("blog", label="closed")
        del closed
        lost = Client(daemon.path)
        lease = lost.lease("blog", label="lost")
        with contextlib.suppress(ConnectionLostError):
            lost.call("die")
        del lease
        lost.close()
    assert [str(each.message) for each in caught] == []


def test_a_finalizer_never_waits_for_another_thread(daemon: ScriptedDaemon, client: Client) -> None:
    """Not even when it runs in the midst of the thread that reads and of the one that sends."""
    lease = client.lease("blog", label="forgotten")
    whole = client._connection._send

    def send(data: bytes, flags: int) -> int:
        nonlocal lease
        with pytest.warns(ResourceWarning):
            lease = None  # type: ignore[assignment]
        client._connection._send = whole
        return whole(data, flags)

    client._connection._send = send  # type: ignore[assignment]
    client.call("ping")
    eventually(lambda: not daemon.held)


def test_a_lease_in_a_cycle_is_collected_by_whatever_thread(
    daemon: ScriptedDaemon, client: Client
) -> None:
    cycle: list[Any] = [client.lease("blog", label="forgotten")]
    cycle.append(cycle)
    del cycle
    with pytest.warns(ResourceWarning, match="forgotten"):
        Worker(gc.collect).done()
    eventually(lambda: not daemon.held)


def test_the_end_of_the_interpreter_makes_no_noise(daemon: ScriptedDaemon) -> None:
    script = "import sys, clonepool\nlease = clonepool.Client(sys.argv[1]).lease('blog')\n"
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script, daemon.path],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "lease" not in done.stderr
    assert done.returncode == 0
    eventually(lambda: not daemon.held)


def test_an_error_in_the_block_is_not_hidden_by_a_lease_that_has_ended(
    daemon: ScriptedDaemon, client: Client
) -> None:
    lease = client.lease("blog", label="x")
    daemon.held.clear()
    with pytest.raises(ZeroDivisionError), lease:
        raise ZeroDivisionError


# Forks ------------------------------------------------------------------------------------

FORK = """
import gc, os, sys, threading, time, warnings
import clonepool
from clonepool.errors import ClientClosedError

warnings.simplefilter("error")
client = clonepool.Client(sys.argv[1])
lease = client.lease("blog", label="parents")
for _ in range(3):  # threads that hold whatever there is to be held
    threading.Thread(target=lambda: client.lease("never"), daemon=True).start()
time.sleep(0.2)
number = client._connection.socket.fileno()
child = os.fork()
if child == 0:
    for use in (lease.release, lease.renew, lease.reset, lambda: client.call("ping"),
                lambda: client.lease("blog"), lambda: client.define("x")):
        try:
            use()
        except ClientClosedError as error:
            assert "make a Client in the child" in error.remedy, error
        else:
            os._exit(11)
    with lease:
        pass
    try:
        os.fstat(number)
    except OSError:
        pass
    else:
        os._exit(12)
    client.close()
    with clonepool.Client(sys.argv[1]) as own:
        assert own.call("ping") == {}
    del lease, client
    gc.collect()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print("forked", flush=True)
assert client.call("ping") == {}
sys.stdin.read()
lease.release()
print("released", flush=True)
os._exit(0)
"""


def test_the_child_of_a_fork_is_told_and_ends_nothing_of_its_parents(
    daemon: ScriptedDaemon,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORK, daemon.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        assert list(daemon.held.values()) == ["parents"]
        assert "release" not in daemon.seen
        out, _ = process.communicate("", timeout=60)
    assert out == "released\n"
    assert not daemon.garbage


def test_a_child_does_not_keep_the_leases_of_a_parent_that_was_killed(
    daemon: ScriptedDaemon,
) -> None:
    script = """
import os, sys, time, clonepool
lease = clonepool.Client(sys.argv[1]).lease("blog", label="parents")
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, daemon.path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            eventually(lambda: not daemon.held)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_request_goes_to_no_file_that_took_the_sockets_number(daemon: ScriptedDaemon) -> None:
    """The socket is closed when no thread is about to read from it."""
    client = Client(daemon.path)
    waiter = Worker(lambda: client.lease("never"))
    eventually(lambda: bool(daemon.waiting))
    number = client._connection.socket.fileno()
    client.close()
    waiter.done()
    assert client._connection.socket.fileno() == -1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


def test_what_takes_long_to_connect_to_leaves_no_socket_behind(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusted(_: str) -> bool:
        raise Interrupted

    monkeypatch.setattr(sync_module, "is_trusted", trusted)
    with pytest.raises(Interrupted):
        Client(daemon.path)
    gc.collect()  # a socket that was not closed would be told of here


# No daemon ---------------------------------------------------------------------------------


def refusal(path: str | None = None) -> DaemonNotFoundError:
    with pytest.raises(DaemonNotFoundError) as caught:
        Client(path)
    return caught.value


def test_without_a_socket_the_remedy_is_to_start_a_daemon_or_to_name_its_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)
    places = [str(tmp_path / "one"), str(tmp_path / "other")]
    monkeypatch.setattr(sync_module, "socket_candidates", lambda _: places)
    error = refusal()
    assert str(error) == f"no clonepool daemon at {places[0]} or {places[1]}"
    assert "`clonepool serve`" in error.remedy
    assert SOCKET_VARIABLE in error.remedy


def test_where_the_socket_was_named_the_remedy_is_not_to_name_it(tmp_path: Path) -> None:
    error = refusal(str(tmp_path / "none"))
    assert (
        "start one there with `clonepool serve --socket PATH`, or correct the path" in error.remedy
    )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    error = refusal(str(tmp_path / "dead"))
    assert str(error).endswith(f"; {tmp_path}/dead: Connection refused")


class DeniedSocket(socket.socket):
    """A socket that may not connect to where it is told."""

    def connect(self, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", address)


def test_a_socket_of_a_group_of_others_is_told_with_the_way_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "socket", DeniedSocket)
    error = refusal("/it/s")
    assert str(error) == (
        "this user may not connect to the clonepool daemon at /it/s: Permission denied"
    )
    assert "member of the socket's group" in error.remedy
    assert "name its socket" not in error.remedy


def test_a_socket_in_another_users_directory_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sync_module, "is_trusted", lambda _: False)
    error = refusal("/it/s")
    assert str(error).endswith("at /it/s; /it/s: its directory belongs to another user")
    assert "start one of your own" in error.remedy
    assert "name its socket" not in error.remedy
