from __future__ import annotations

import asyncio
import errno
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from clonepool import resource_errors
from clonepool.core.limits import Limit
from clonepool.errors import ResourceError, ServerUnavailableError
from clonepool.observe.metrics import Metrics
from clonepool.service import loop
from clonepool.service.api.acceptor import Acceptor
from clonepool.service.api.builds import Builds
from clonepool.service.api.progress import Drains
from clonepool.service.call import Call
from clonepool.service.failures import Failures
from clonepool.service.monitors.event_loop import EventLoopMonitor
from clonepool.service.resources import Resources
from support.connections import FakeConnection

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (OSError(errno.EMFILE, "x"), Limit.FILES),
        (OSError(errno.ENFILE, "x"), Limit.FILES),
        (OSError(errno.ENOMEM, "x"), Limit.MEMORY),
        (MemoryError(), Limit.MEMORY),
        (RuntimeError("can't start new thread"), Limit.PROCESSES),
        (ExceptionGroup("x", [ValueError(), OSError(errno.EMFILE, "x")]), Limit.FILES),
        (ResourceError("x", limit="files"), Limit.FILES),
        (ResourceError("x", limit="storage"), None),
        (ServerUnavailableError("x"), None),
        (OSError(errno.ENOENT, "x"), None),
        (OSError(errno.EAGAIN, "x"), None),
        (OSError("no number"), None),
        (RuntimeError("another"), None),
    ],
)
def test_a_shortage_is_told_from_an_answer(error: BaseException, limit: Limit | None) -> None:
    assert resource_errors.shortage(error) is limit
    told = resource_errors.told(error, "doing it")
    assert (told.limit if told else None) == limit
    assert told is None or told.remedy or told is error


def test_only_where_a_program_is_started_eagain_means_processes() -> None:
    error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    assert resource_errors.shortage(error, starting=True) is Limit.PROCESSES


def test_many_failures_of_one_shortage_are_one_line_and_one_when_it_is_over() -> None:
    now = 0.0
    shortages = Resources(lambda: now)
    failures = Failures(Metrics(CollectorRegistry(), ["blog"]), shortages)
    with capture_logs() as logs:
        for number in range(100):
            told = failures.begin(f"{number}.failed", "blog", OSError(errno.EMFILE, "Too many"))
            assert isinstance(told, ResourceError)
            failures.end(f"{number}.failed", "blog")
        assert shortages.current() == ["files"]
        now = 2.0
        shortages.look()
        assert shortages.current() == ["files"], "it is not quiet for long enough"
        now = 3.0
        shortages.look()
    assert shortages.current() == []
    told_lines = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert told_lines == ["machine.short", "machine.short_no_more"]


@pytest.mark.anyio
async def test_an_exception_in_a_callback_is_one_line_and_a_shortage_none_of_its_own() -> None:
    shortages = Resources(asyncio.get_running_loop().time)
    running = asyncio.get_running_loop()
    running.set_exception_handler(loop.handler(shortages))

    def fail(error: Exception) -> None:
        raise error

    with capture_logs() as logs:
        for _ in range(20):
            running.call_soon(fail, OSError(errno.EMFILE, "Too many open files"))
        running.call_soon(fail, ValueError("a mistake"))
        await anyio.wait_all_tasks_blocked()
    assert [entry["event"] for entry in logs] == ["machine.short", "loop.callback_failed"]


class Scripted(socket.socket):
    """A listening socket whose accept fails as it is told."""

    failures: list[OSError]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            raise self.failures.pop(0)
        return super().accept()


@pytest.mark.anyio
async def test_clients_that_wait_for_an_accept_are_accepted_afterwards(
    tmp_path: Path,
) -> None:
    came = anyio.Event()

    class ScriptedConnection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            came.set()
            transport.close()

    with Scripted(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as caller:
        bound.failures = [OSError(number, "x") for number in (24, 23, 12, 103, 11, 1)]
        bound.bind(str(tmp_path / "socket"))
        acceptor = Acceptor(bound, ScriptedConnection, Resources(lambda: 0.0), turn=4)
        with capture_logs() as logs:
            acceptor.open(5)
            caller.connect(str(tmp_path / "socket"))
            with anyio.fail_after(20):
                await came.wait()
        acceptor.close()
        acceptor.close()
        await anyio.wait_all_tasks_blocked()
    short = [entry["of"] for entry in logs if entry["event"] == "machine.short"]
    assert short == ["files", "memory"]
    assert [e["event"] for e in logs if e["event"] != "machine.short"] == ["connection.not_taken"]


@pytest.mark.anyio
async def test_an_exception_while_explaining_answers_the_call_and_ends_nothing() -> None:
    client = FakeConnection()

    class Builder:
        def __init__(self, error: Exception) -> None:
            self._error = error

        async def explain(self, _: str) -> object:
            raise self._error

    async with anyio.create_task_group() as tasks:
        for error in (ValueError("a mistake"), OSError(errno.EMFILE, "Too many open files")):
            builds = Builds(Builder(error), tasks)  # type: ignore[arg-type]
            builds.explain(Call(client, 1, 1), "blog")
    assert client.errors == ["internal_error", "server_unavailable"]


def test_an_exception_while_a_drain_is_watched_answers_the_call() -> None:
    client = FakeConnection()

    class Fleet:
        leases = iter([3])

        def leased(self, _: object) -> int:
            return next(self.leases)

    class Loop:
        def call_later(self, *_: object) -> Any:
            return SimpleNamespace(cancel=lambda: None)

    drains = Drains(Fleet(), Loop())  # type: ignore[arg-type]
    drains.watch(Call(client, 1, 1), None, 5.0, progress=False)
    assert client.errors == []
    with capture_logs():
        drains.look()
    assert client.errors == ["internal_error"]


@pytest.mark.anyio
async def test_the_lag_is_how_much_later_than_due_the_loop_came() -> None:
    metrics = Metrics(CollectorRegistry(), [])
    times = iter([0.0, 0.25, 1.0, 2.25])
    failures = Failures(metrics, Resources(lambda: 0.0))
    monitor = EventLoopMonitor(
        failures, lag_seconds=metrics.event_loop_lag_seconds, now=lambda: next(times)
    )
    for _ in range(2):
        await monitor.run_once()
    found = {
        sample.name.removeprefix("clonepool_event_loop_lag_seconds"): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if "lag" in sample.name and not sample.labels
    }
    assert found["_count"] == 2
    assert found["_sum"] == pytest.approx(1.0)
