"""What the base classes of jobs and monitors guarantee."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from clonepool.core.decisions import Drop
from clonepool.core.events import CloneDropped, CloneUnusable
from clonepool.errors import ServerUnavailableError
from clonepool.observe.metrics import Metrics
from clonepool.service.failures import Failures
from clonepool.service.jobs.base import Job, JobTools, PersistentJob
from clonepool.service.monitors.base import Monitor, Pause
from clonepool.service.resources import Resources
from clonepool.service.wakeup import WakeUp

if TYPE_CHECKING:
    from clonepool.core.events import Event
    from clonepool.service.failures import Attempt

pytestmark = pytest.mark.anyio

DROP = Drop("blog", "clone_1")


class Heard:
    """Takes note of the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        self.events.append(event)

    def looked_at(self, clone: str) -> None:
        raise AssertionError(clone)


def make_failures() -> Failures:
    return Failures(Metrics(CollectorRegistry(), ["blog"]), Resources(time.monotonic))


def tools_with(heard: Heard) -> JobTools:
    unused = cast("Any", None)
    return JobTools(
        comments=unused,
        events=heard,
        failures=make_failures(),
        gateway=unused,
        metrics=unused,
        now=time.monotonic,
        templates=unused,
    )


class Script:
    """The passes of a job: exceptions are raised, anything else is returned."""

    def __init__(self, *passes: Event | BaseException) -> None:
        self._passes = list(passes)

    def next(self) -> Event:
        outcome = self._passes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class ScriptedJob(Job["Drop"]):
    """Makes one pass of a script."""

    failed_event = "test.failed"

    def __init__(self, heard: Heard, *passes: Event | BaseException) -> None:
        super().__init__(tools_with(heard))
        self._script = Script(*passes)

    def target(self, decision: Drop) -> Drop:
        return decision

    async def run_once(self, decision: Drop) -> Event:
        del decision
        return self._script.next()

    def failed(self, decision: Drop, attempt: Attempt) -> Event:
        assert attempt.failed
        return CloneUnusable(decision.template, decision.clone)


class ScriptedPersistentJob(PersistentJob["Drop"]):
    """Makes passes of a script until one succeeds."""

    failed_event = "test.failed"
    first_pause = longest_pause = 0.0

    def __init__(self, heard: Heard, *passes: Event | BaseException) -> None:
        super().__init__(tools_with(heard))
        self._script = Script(*passes)

    def target(self, decision: Drop) -> Drop:
        return decision

    async def run_once(self, decision: Drop) -> Event:
        del decision
        return self._script.next()


async def test_the_pools_are_told_what_a_job_did() -> None:
    heard = Heard()
    await ScriptedJob(heard, CloneDropped("blog", "clone_1")).run(DROP)
    assert heard.events == [CloneDropped("blog", "clone_1")]


@pytest.mark.parametrize("error", [ServerUnavailableError("away"), ValueError("a bug of ours")])
async def test_a_pass_that_fails_is_logged_and_the_pools_are_told(error: Exception) -> None:
    heard = Heard()
    with capture_logs() as logs:
        await ScriptedJob(heard, error).run(DROP)
    assert heard.events == [CloneUnusable("blog", "clone_1")]
    (failed,) = [entry for entry in logs if entry["event"] == "test.failed"]
    assert (failed["template"], failed["clone"]) == ("blog", "clone_1")


async def test_a_job_that_tries_again_tells_of_its_success_alone() -> None:
    heard, away = Heard(), ServerUnavailableError("away")
    with capture_logs() as logs:
        await ScriptedPersistentJob(heard, away, away, CloneDropped("blog", "clone_1")).run(DROP)
    assert heard.events == [CloneDropped("blog", "clone_1")]
    assert [entry["event"] for entry in logs] == ["test.failed", "trouble.ended"]


async def test_a_job_that_is_cancelled_tells_nothing() -> None:
    heard = Heard()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ScriptedPersistentJob(heard, ServerUnavailableError("away")).run(DROP)
    assert scope.cancelled_caught
    assert heard.events == []


class ScriptedMonitor(Monitor):
    """Makes the passes that it is given, then none."""

    failed_event = "test.failed"
    first_pause = longest_pause = 0.0

    def __init__(self, woken: WakeUp, *passes: Pause | Exception) -> None:
        super().__init__(make_failures(), woken)
        self._passes = list(passes)
        self.wake_ups = 0
        self.made = anyio.Event()

    def after_wake_up(self) -> None:
        self.wake_ups += 1

    async def run_once(self) -> Pause:
        if not self._passes:
            self.made.set()
            await anyio.sleep_forever()
        outcome = self._passes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def make_all(monitor: ScriptedMonitor) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.run)
        with anyio.fail_after(5):
            await monitor.made.wait()
        tasks.cancel_scope.cancel()


async def test_a_pass_that_fails_is_followed_by_another() -> None:
    monitor = ScriptedMonitor(WakeUp(), ValueError("a bug of ours"), Pause(0.0, 0.0))
    with capture_logs() as logs:
        await make_all(monitor)
    events = [entry["event"] for entry in logs]
    assert events == ["worker.failed", "test.failed", "trouble.ended"]


async def test_a_wake_up_ends_the_pause_and_the_monitor_knows() -> None:
    woken = WakeUp()
    monitor = ScriptedMonitor(woken, Pause())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(monitor.run)
        await anyio.wait_all_tasks_blocked()
        assert not monitor.made.is_set()
        woken.set()
        with anyio.fail_after(5):
            await monitor.made.wait()
        tasks.cancel_scope.cancel()
    assert monitor.wake_ups == 1


async def test_an_exception_that_ends_the_daemon_passes() -> None:
    class Fragile(ScriptedMonitor):
        expected = (ServerUnavailableError,)

    with pytest.raises(ServerUnavailableError):
        await Fragile(WakeUp(), ServerUnavailableError("for good")).run()
