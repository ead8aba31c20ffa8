"""Watches are refused, end or stay silent: templates are stale only briefly; checks are cheap."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs
from watchfiles._rust_notify import RustNotify

from clonepool.postgres.templates.file_digests import Digests
from clonepool.service.monitors import watches
from clonepool.service.monitors.files import NOT_WATCHED, WATCHED_AGAIN, Pace
from support.watching import BY_LOOKS_ALONE, BY_WATCH_ALONE, HOURS, fill, remove_and_make, shop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with `mig/1.sql` in it, of its own: what lies above is watched as well."""
    return fill(tmp_path / "top" / "mig").parent


# Watches that are not had ---------------------------------------------------------------------


def refused(*_: object) -> Any:
    raise OSError("OS file watch limit reached.")


class Broken:
    """Stands in for the library: stands, then fails as told."""

    failure: BaseException = RuntimeError("the thread died")
    stands_for = 0.0

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Broken:
        return self

    def __exit__(self, *_: object) -> None: ...

    def watch(self, *_: object) -> Any:
        time.sleep(self.stands_for)  # sleeps: as the library blocks
        raise self.failure


class Panic(BaseException):
    """As pyo3 raises it: no Exception."""


@pytest.mark.parametrize("failure", [RuntimeError("the thread died"), Panic("index out of range")])
async def test_the_slow_look_finds_what_a_dead_thread_does_not_tell(
    here: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    monkeypatch.setattr(Broken, "failure", failure)
    monkeypatch.setattr(watches, "RustNotify", Broken)
    with capture_logs() as logs:
        async with shop(here, "mig/*.sql", pace=BY_LOOKS_ALONE) as world:
            for number in range(4):
                (here / "mig" / "1.sql").write_text(f"SELECT 'edited {number}';")
                await world.until_true()
                await anyio.sleep(0.2)  # sleeps: it is watched again after that
    assert [each["event"] for each in logs].count(NOT_WATCHED) == 1


async def test_limits_of_the_kernel_are_told_once_and_watched_for_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, pace = RustNotify, Pace(HOURS, 0.05, HOURS, share=1.0, again=0.3)
    monkeypatch.setattr(watches, "RustNotify", refused)
    with capture_logs() as logs:
        async with shop(here, "mig/*.sql", pace=pace) as world:
            (here / "mig" / "1.sql").write_text("SELECT 'edited';")
            await world.until_true()
            await anyio.sleep(1)  # sleeps: it is tried again in that time, without a report
            assert [each["event"] for each in logs].count(NOT_WATCHED) == 1
            monkeypatch.setattr(watches, "RustNotify", real)
            number = 0
            with anyio.fail_after(20):
                while WATCHED_AGAIN not in [each["event"] for each in logs]:
                    number += 1
                    (here / "mig" / "1.sql").write_text(f"SELECT {number};")
                    await world.until_true()
                    await anyio.sleep(0.1)  # sleeps: between two edits
            (here / "mig" / "1.sql").write_text("SELECT 'edited too';")
            await world.until_true()  # by the watches: no look is due for hours


def take_all_instances(directory: Path) -> list[RustNotify]:
    """Take what the kernel lets this user have; more than a thousand are too many to take."""
    taken: list[RustNotify] = []
    try:
        while len(taken) < 1000:
            taken.append(RustNotify([str(directory)], False, False, 0, False, True))
    except RuntimeError as error:
        assert "Too many open files" in str(error)  # noqa: PT017 - that it is raised is no must
    return taken


@pytest.mark.alone  # all daemons of this user share that limit
async def test_the_real_limit_on_instances_is_survived(here: Path) -> None:
    taken = take_all_instances(here)
    try:
        pace = Pace(HOURS, 0.05, HOURS, share=1.0, again=0.3)
        async with shop(here, "mig/*.sql", pace=pace) as world:
            (here / "mig" / "1.sql").write_text("SELECT 'edited';")
            await world.until_true()
            while taken:
                taken.pop().close()
            (here / "mig" / "1.sql").write_text("SELECT 'edited too';")
            await world.until_true()
    finally:
        for each in taken:
            each.close()


async def test_a_file_system_that_reports_nothing_is_looked_at(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Broken):
        def watch(self, *_: object) -> Any:
            time.sleep(0.05)  # sleeps: as the library blocks
            return "timeout"

    monkeypatch.setattr(watches, "RustNotify", Silent)
    async with shop(here, "mig/*.sql", pace=BY_LOOKS_ALONE) as world:
        remove_and_make(here / "mig")
        await world.until_true()
        (here / "mig" / "2.sql").write_text("SELECT 2;")
        await world.until_true()


async def test_a_name_that_is_no_utf_8_beside_the_sources_does_no_harm(here: Path) -> None:
    pace = BY_WATCH_ALONE._replace(blind=0.1)
    async with shop(here, "mig/*.sql", pace=pace) as world:
        (here / "mig" / os.fsdecode(b"\xff.sql")).write_text("SELECT 'bytes';")
        await world.until_true()
        await anyio.sleep(0.5)  # sleeps: looks go on, and must not fail
        (here / "mig" / "1.sql").write_text("SELECT 'edited';")
        await world.until_true()


async def test_watching_again_after_a_lost_watch_is_by_what_the_look_found(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watches that stand and say nothing are replaced when a look finds what they did not."""
    made = 0

    class Deaf(Broken):
        def __init__(self, *_: object) -> None:
            nonlocal made
            made += 1

        def watch(self, *_: object) -> Any:
            time.sleep(0.05)  # sleeps: as the library blocks
            return "timeout"

    monkeypatch.setattr(watches, "RustNotify", Deaf)
    async with shop(here, "mig/*.sql", pace=BY_LOOKS_ALONE) as world:
        with anyio.fail_after(20):
            number = 0
            while made < 2:
                number += 1
                (here / "mig" / "1.sql").write_text(f"SELECT 'edited {number}';")
                await world.until_true()
                await anyio.sleep(0.2)  # sleeps: between two edits


# What it costs ----------------------------------------------------------------------------------


async def test_a_slow_look_reads_only_what_is_new(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose time is still to come, too."""
    (here / "mig" / "2.sql").write_text("SELECT 2;")
    ahead = time.time() + 86_400
    os.utime(here / "mig" / "2.sql", (ahead, ahead))
    monkeypatch.setattr(Digests, "_RECENT_NANOSECONDS", 1)
    read = []
    original = open

    def opened(place: Any, *how: Any, **more: Any) -> Any:
        read.append(place)
        return original(place, *how, **more)

    await anyio.sleep(0.02)  # sleeps: older than what counts as recent
    async with shop(here, "mig/*.sql", pace=BY_LOOKS_ALONE):
        monkeypatch.setattr("clonepool.postgres.templates.file_digests.open", opened, raising=False)
        await anyio.sleep(0.5)  # sleeps: looks go on, and must read nothing
        assert read == []
        (here / "mig" / "1.sql").write_text("SELECT 'edited';")
        with anyio.fail_after(20):
            while not read:
                await anyio.sleep(0.01)
        assert {Path(each).name for each in read} == {"1.sql"}


async def test_looks_at_thousands_of_files_leave_the_loop_to_others(here: Path) -> None:
    """No callback may take long: the time between two turns of the loop shows the longest."""
    for number in range(3_000):
        (here / "mig" / f"{number}.sql").write_text(f"SELECT {number};")
    async with shop(here, "mig/*.sql", "**/*.sql", pace=BY_LOOKS_ALONE):
        slow: list[float] = []
        for _ in range(200):
            began = time.thread_time()
            await anyio.sleep(0.002)  # sleeps: a turn of the loop
            slow.append(time.thread_time() - began)  # of this thread: the looks are in others
        assert max(slow) < 0.02, sorted(slow)[-5:]


def test_the_pause_between_looks_follows_what_they_cost() -> None:
    pace = Pace()
    assert pace.pause(0.001, watching=True) == pace.least
    assert pace.pause(0.1, watching=True) == pytest.approx(50)
    assert pace.pause(3.0, watching=True) == pace.most
    assert pace.pause(0.001, watching=False) == pace.blind
    assert pace.pause(0.1, watching=False) == pytest.approx(5)
