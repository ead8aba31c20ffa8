"""The daemon cannot open files for a while: work is postponed, reported once, and done later."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.errors import ClonepoolError
from support.daemons import Daemon, clean_up, eventually, free_port, running_daemon
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
)
from support.resource_errors import files_left, files_of
from support.servers import ROOT, open_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clonepool.client import Client

MISTAKES = ("loop.callback_failed", "request.failed", "reply.failed", "work.not_done")
TABLE = "CREATE TABLE one (n integer);\n"


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


@contextmanager
def connected(daemon: Daemon) -> Iterator[Client]:
    """Connect, and be let in: else the connection may wait for a file in the kernel's queue."""
    with daemon.client() as client:
        client.call("ping")
        yield client


def lines_since(daemon: Daemon, length: int) -> list[str]:
    return daemon.log.read_text()[length:].splitlines()


def assert_no_mistakes(daemon: Daemon) -> None:
    for event in MISTAKES:
        assert not logged(daemon, event), logged(daemon, event)
    assert "Traceback" not in daemon.log.read_text()
    assert '"exception"' not in daemon.log.read_text()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def injected() -> bool:
    """Whether single files can be made to fail."""
    return False


def arm(daemon: Daemon, number: int) -> bool:
    """Let the n-th file from now on fail; say whether the failure before has happened."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(daemon.directory / "control"))
        control.sendall(str(number).encode())
        return control.recv(100) == b"yes"


@pytest.fixture
def daemon(port: int, *, injected: bool) -> Iterator[Daemon]:
    config = f"""
[http]
listen = "127.0.0.1:{port}"
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 3
max_clones = 12
[templates.own]
sql = ["own/*.sql", "more/*/*.sql"]
min_ready = 1
max_clones = 4
"""
    with open_directory() as directory:
        running = Daemon(directory, config)
        if injected:
            program = str(ROOT / "tests" / "support" / "injected.py")
            running.program = (sys.executable, program, str(directory / "control"))
        for name in ("own", "more/a"):
            (directory / name).mkdir(parents=True)
        (directory / "own" / "1.sql").write_text(TABLE)
        (directory / "more" / "a" / "2.sql").write_text("CREATE TABLE two (n integer);\n")
        try:
            yield running.start()
        finally:
            clean_up(running)


def whole(daemon: Daemon) -> bool:
    return is_whole(daemon) and not daemon.status()["short_of"]


def assert_whole_soon(daemon: Daemon, seconds: float = 5.0) -> None:
    try:
        eventually(lambda: whole(daemon), seconds, "the daemon is whole again")
    except AssertionError as error:
        error.add_note(f"{daemon.status()}\n{daemon.log.read_text()[-4000:]}")
        raise


def work(daemon: Daemon, client: Client, round_: int) -> None:
    """Do what a client does, and change a file; what is refused is refused with a reason."""
    (daemon.directory / "own" / "1.sql").write_text(f"{TABLE}-- {round_}\n")
    for call in (
        lambda: client.lease("blog", timeout=0.3).release(),
        lambda: client.call("status"),
        lambda: client.call("templates"),
        lambda: client.call("explain", template="own"),
        lambda: client.lease("own", timeout=0.3, ttl=60).release(),
    ):
        refusal = refusal_of(call)
        if refusal is not None:
            assert refusal.code != "internal_error", refusal
            assert "names no file" not in str(refusal)


def refusal_of(call: Callable[[], object]) -> ClonepoolError | None:
    try:
        call()
    except ClonepoolError as error:
        return error
    return None


def test_however_few_files_are_left_the_daemon_is_whole_soon_after(
    daemon: Daemon, port: int
) -> None:
    eventually(lambda: whole(daemon), 60)
    with connected(daemon) as client:
        for left in (0, 1, 2, 3, 4, 6, 9, 13):
            length = len(daemon.log.read_text())
            with files_left(pid_of(daemon), left):
                work(daemon, client, left)
                time.sleep(1.0)  # sleeps: the shortage is to last longer than the first tries
                work(daemon, client, -left)
                for pool in client.call("status")["pools"]:
                    assert pool["phase"] != "failed", pool["failure"]
            assert_whole_soon(daemon)
            assert len(lines_since(daemon, length)) < 25, lines_since(daemon, length)
            assert_no_mistakes(daemon)
            (daemon.directory / "own" / "1.sql").write_text(TABLE)
            lease = client.lease("own", timeout=20)
            assert rows(lease.url, "SELECT count(*) FROM two, one") == [{"count": 0}]
            lease.release()
    eventually(lambda: get(port, "/readyz")[0] == 200)


def ping(daemon: Daemon) -> str:
    """Connect and send a request; the client library would wait without limit."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(20)
        caller.connect(str(daemon.socket))
        caller.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        return caller.recv(4096).decode()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("injected", [True])
def test_whichever_file_cannot_be_opened_the_daemon_is_whole_soon_after(daemon: Daemon) -> None:
    eventually(lambda: whole(daemon), 60)
    with connected(daemon) as client:
        for number in range(1, 200):
            before = daemon.pool("own")["generation"]
            arm(daemon, number)
            work(daemon, client, number)
            assert "result" in ping(daemon)
            built = partial(lambda old: daemon.pool("own")["generation"] != old, before)
            eventually(built, 20, "the changed file is built")
            happened = arm(daemon, 0)
            eventually(lambda: is_whole(daemon), 5)
            assert_no_mistakes(daemon)
            lease = client.lease("own", timeout=20)
            assert rows(lease.url, "SELECT count(*) FROM two, one") == [{"count": 0}]
            lease.release()
            if not happened:
                break
        assert_whole_soon(daemon)
    assert number > 20


def test_a_shortage_is_told_once_and_seen_in_status_readiness_and_metrics(
    daemon: Daemon, port: int
) -> None:
    eventually(lambda: whole(daemon), 60)
    with connected(daemon) as client, closing(HTTPConnection("127.0.0.1", port)) as visitor:
        length, began = len(daemon.log.read_text()), time.monotonic()

        def told(path: str) -> str:
            visitor.request("GET", path)
            return visitor.getresponse().read().decode()

        told("/healthz")  # from now on it is connected
        with files_left(pid_of(daemon), -1):
            held = [client.lease("blog", timeout=0) for _ in range(3)]
            limited = '\nclonepool_limited{limit="files",template="blog"} 1.0\n'
            eventually(lambda: limited in told("/metrics"))
            assert '\nclonepool_short{resource="files"} 1.0\n' in told("/metrics")
            assert json.loads(told("/readyz"))["short_of"] == ["files"]
            assert client.call("status")["short_of"] == ["files"]
            assert "Too many open files" in _pool(client.call("status"), "blog")["last_error"]
            (daemon.directory / "own" / "1.sql").write_text(f"{TABLE}-- changed\n")
            eventually(lambda: time.monotonic() > began + 10)
            for lease in held:
                lease.release()
        assert_whole_soon(daemon)
        assert json.loads(get(port, "/readyz")[1]) == {
            "ready": True,
            "reasons": [],
            "short_of": [],
        }
        assert metric(port, 'clonepool_short{resource="files"}') == 0
    lines = [json.loads(line) for line in lines_since(daemon, length)]
    warnings = [entry for entry in lines if entry["level"] != "info"]
    assert [entry["event"] for entry in warnings] == ["machine.short"], warnings
    assert warnings[0]["of"] == "files"
    assert "LimitNOFILE" in warnings[0]["remedy"]
    assert_no_mistakes(daemon)


def _pool(status: dict[str, Any], template_: str) -> dict[str, Any]:
    (found,) = (pool for pool in status["pools"] if pool["template"] == template_)
    return dict(found)


def test_a_file_changed_while_it_cannot_be_read_is_built_when_it_can_be(daemon: Daemon) -> None:
    eventually(lambda: whole(daemon), 60)
    before = daemon.pool("own")["generation"]
    with connected(daemon) as client:
        with files_left(pid_of(daemon), 0):
            (daemon.directory / "own" / "1.sql").write_text(f"{TABLE}CREATE TABLE new ();\n")
            eventually(lambda: "files" in client.call("status")["short_of"], what="it looked")
            (own,) = (p for p in client.call("templates") if p["template"] == "own")
            assert own["phase"] != "failed"
        eventually(lambda: daemon.pool("own")["generation"] != before, 5)
        assert_whole_soon(daemon)
    assert not logged(daemon, "template.build_failed")
    assert_no_mistakes(daemon)


def test_clients_that_come_while_no_file_is_left_are_served_when_there_is(daemon: Daemon) -> None:
    eventually(lambda: whole(daemon), 60)
    with files_left(pid_of(daemon), 0):
        waiting = []
        for _ in range(30):
            caller = socket.socket(socket.AF_UNIX)
            caller.connect(str(daemon.socket))
            caller.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
            waiting.append(caller)
        eventually(lambda: len(logged(daemon, "machine.short")) == 1)
    for caller in waiting:
        caller.settimeout(20)
        assert b'"result"' in caller.recv(4096)
        caller.close()
    assert_whole_soon(daemon)
    assert_no_mistakes(daemon)


def test_an_adopted_server_is_not_taken_for_dead_when_it_cannot_be_looked_at(
    daemon: Daemon,
) -> None:
    eventually(lambda: whole(daemon), 60)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    eventually(lambda: whole(daemon), 60)
    (adopted,) = logged(daemon, "server.adopted")
    sentinel = _lock_backend(daemon)
    with connected(daemon) as client, files_left(pid_of(daemon), -1):
        os.kill(sentinel, signal.SIGTERM)  # its end is heard, and the server lives on
        eventually(lambda: client.call("status")["server"]["problem"] != "")
        time.sleep(1.0)  # sleeps: checks fail during it, and must not end the process
        os.kill(adopted["pid"], 0)
    assert_whole_soon(daemon)
    os.kill(adopted["pid"], 0)
    assert len(logged(daemon, "server.started")) == 1, "by the first daemon alone"
    with daemon.client() as client, client.lease("blog", timeout=20) as lease:
        assert rows(lease.url, COUNT) == [{"count": 40}]
    assert_no_mistakes(daemon)


def test_a_daemon_that_has_no_files_left_stops_in_order(daemon: Daemon) -> None:
    eventually(lambda: whole(daemon), 60)
    pids = [entry["pid"] for entry in logged(daemon, "server.started")]
    with connected(daemon) as client:
        held = client.lease("blog", timeout=20)
        with files_left(pid_of(daemon), 0):
            daemon.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
            assert daemon.process.wait(60) == 0  # type: ignore[union-attr]
    del held
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "Traceback" not in daemon.log.read_text()
    daemon.start()
    eventually(lambda: whole(daemon), 60)


@pytest.mark.parametrize("files", [16, 20, 24, 28])
def test_a_daemon_with_too_few_files_to_start_says_so(files: int) -> None:
    wrapper = ["prlimit", f"--nofile={files}:{files}"]
    with open_directory() as directory:
        poor = Daemon(directory, template_of(""))
        poor.wrapper = wrapper
        try:
            code = poor.spawn().wait(60)
            assert code not in (0, 2, 3), "it is no mistake of the configuration"
            last = poor.log.read_text().splitlines()[-1]
            assert last.startswith("clonepool: ")
            assert "open files" in last or "insufficient file descriptors" in last
            assert "Traceback" not in poor.log.read_text()
        finally:
            clean_up(poor)
            for made in re.findall(r"failed in (/dev/shm/clonepool-\S+):", poor.log.read_text()):
                shutil.rmtree(made)


def _lock_backend(daemon: Daemon) -> int:
    with daemon.client() as client, client.lease("blog", timeout=20) as lease:
        (found,) = rows(
            lease.url,
            "SELECT pid FROM pg_stat_activity JOIN pg_locks USING (pid)"
            " WHERE locktype = 'advisory' AND application_name LIKE 'clonepool %'",
        )
    pid: int = found["pid"]
    return pid


def test_with_few_files_fewer_clients_are_let_in_and_the_rest_goes_on() -> None:
    wrapper = ["prlimit", "--nofile=192:192"]
    with running_daemon(
        template_of("[embedded]\nmax_connections = 50\n"), wrapper=wrapper
    ) as small:
        eventually(lambda: whole(small), 60)
        (said,) = logged(small, "clients.limited")
        assert said["most"] < said["wanted"]
        callers = []
        for _ in range(400):
            caller = socket.socket(socket.AF_UNIX)
            caller.connect(str(small.socket))
            callers.append(caller)
        refused = callers[-1]
        refused.settimeout(20)
        assert b"limit of open files" in refused.recv(4096)
        for caller in callers[said["most"] // 2 :]:
            caller.close()
        for _ in range(5):
            with small.client() as client:
                held = [client.lease("blog", timeout=20) for _ in range(6)]
                assert rows(held[-1].url, COUNT) == [{"count": 40}]
                for lease in held:
                    lease.release()
        for caller in callers:
            caller.close()
        assert not logged(small, "machine.short")
        assert_recovers(small)


def template_of(more: str) -> str:
    return f'[http]\nlisten = ""\n{more}' + template(min_ready=3, max_clones=12)


def test_the_limit_of_files_is_raised_for_the_daemon_and_not_for_what_it_starts() -> None:
    wrapper = ["prlimit", "--nofile=1000:4000"]
    seen = 'command = "ulimit -Sn > limit; ulimit -Hn >> limit"\n'
    with running_daemon(template_of("") + seen, wrapper=wrapper) as raised:
        eventually(lambda: whole(raised), 60)
        assert _limits(pid_of(raised)) == ["4000", "4000"]
        (said,) = logged(raised, "files.limit_raised")
        assert (said["before"], said["now"]) == (1000, 4000)
        assert (raised.directory / "limit").read_text().split() == ["1000", "4000"]
        (started,) = logged(raised, "server.started")
        assert _limits(started["pid"]) == ["1000", "4000"]


def _limits(pid: int) -> list[str]:
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = (line for line in limits if line.startswith("Max open files"))
    return line.split()[3:5]


def test_as_many_clients_as_may_be_connected_may_come_at_once() -> None:
    with running_daemon(template_of("[access]\nmax_clients = 700\n")) as busy:
        eventually(lambda: whole(busy), 60)
        callers = []
        with halted(pid_of(busy)):
            for _ in range(690):
                caller = socket.socket(socket.AF_UNIX)
                caller.setblocking(False)
                caller.connect(str(busy.socket))
                callers.append(caller)
        eventually(lambda: len(files_of(pid_of(busy))) > 690)
        for caller in callers:
            caller.close()
        assert_recovers(busy)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_daemon_started_without_standard_files_works_and_stops(closed: str) -> None:
    wrapper = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    with running_daemon(template_of(""), wrapper=wrapper) as bare:
        eventually(lambda: whole(bare), 60)
        for number in (0, 1, 2):
            target = str(Path(f"/proc/{pid_of(bare)}/fd/{number}").readlink())
            assert not target.startswith(("socket:", "anon_inode:")), target
        with bare.client() as client:
            client.lease("blog", timeout=20).release()
        assert bare.stop() == 0


def test_a_command_without_standard_files_does_not_write_into_what_it_opens() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-m", "clonepool", "--help"],
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
