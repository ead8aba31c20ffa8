"""A pid may belong to another process after the first has ended: that one is never signalled."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clonepool.postgres import programs
from clonepool.postgres.embedded.process import facts, hold, is_alive
from support.daemons import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAST = Path("/proc/sys/kernel/ns_last_pid")
TRIES = 200
SLEEP = ["sleep", "600"]
pytestmark = pytest.mark.alone  # it decides which number the next process on the machine gets


@pytest.fixture(params=["pidfd", "the time it began"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Hold processes with the kernel's help, and without."""

    def none(_: int) -> int:
        raise OSError(errno.ENOSYS, "no pidfd here")

    if request.param != "pidfd":
        monkeypatch.setattr("os.pidfd_open", none)
    found: str = request.param
    return found


@pytest.fixture
def spawn() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(SLEEP))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def ticks() -> int:
    """Return the time in the kernel's unit for when a process began."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def with_number(pid: int, spawn: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Start a process that gets the number of one that has ended."""
    for _ in range(TRIES):
        try:
            LAST.write_text(str(pid - 1))
        except OSError:
            pytest.skip("the kernel does not let us choose the next process's number")
        process = spawn()
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    pytest.skip("others start processes too fast here")


@pytest.mark.usefixtures("means")
def test_a_stranger_with_the_number_of_a_held_process_is_not_signalled(
    spawn: Callable[[], subprocess.Popen[bytes]],
) -> None:
    former = spawn()
    held = hold(former.pid, lambda _: True)
    assert held is not None
    assert held.alive()
    began = ticks()
    former.kill()
    former.wait()
    eventually(lambda: ticks() > began)  # numbers come again later than that, outside of tests
    stranger = with_number(former.pid, spawn)
    assert not held.alive()
    held.send(signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        stranger.wait(0.3)


@pytest.mark.usefixtures("means")
def test_a_held_process_is_signalled_and_its_end_seen_without_a_waiter(
    spawn: Callable[[], subprocess.Popen[bytes]],
) -> None:
    process = spawn()
    held = hold(process.pid, lambda _: True)
    assert held is not None
    held.send(signal.SIGTERM)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie until the fixture waits
    assert not held.alive()
    held.send(signal.SIGTERM)


@pytest.mark.usefixtures("means")
def test_a_process_is_looked_at_when_it_is_held_and_let_be_when_it_is_another(
    spawn: Callable[[], subprocess.Popen[bytes]],
) -> None:
    process = spawn()
    assert hold(process.pid, lambda _: False) is None
    process.kill()
    process.wait()
    assert hold(process.pid, lambda _: True) is None


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("pid", [0, -1, 2**40])
def test_an_invalid_pid_is_no_process(pid: int) -> None:
    assert hold(pid, lambda _: True) is None


@pytest.mark.usefixtures("means")
def test_no_descriptor_is_left_of_a_process_that_is_not_held_any_more() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only how many
    for _ in range(50):
        hold(os.getpid(), lambda _: True)
        hold(os.getpid(), lambda _: False)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


@pytest.mark.anyio
async def test_a_programs_group_is_ended_while_its_number_is_still_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A zombie keeps its number; a program that was waited for does not."""
    states: list[str] = []

    def killpg(pid: int, number: int) -> None:
        found = facts(pid)
        states.append(found[0] if found else "free")
        os.kill(-pid, number)

    monkeypatch.setattr("os.killpg", killpg)
    done = await programs.run(
        "sleep 600 >/dev/null 2>&1 & echo $!; exit 7",
        env=dict(os.environ),
        directory=Path("/"),
        seconds=30,
        what="it",
    )
    assert done.code == 7
    assert states
    assert "free" not in states
    eventually(lambda: not is_alive(int(done.output)), what="what it left is ended too")
