"""However files, directories, links and watches change, a template is stale only briefly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from clonepool.config import CommandSection, TemplateSection
from clonepool.service.monitors.watch_points import Places
from support.building import RecordedCall
from support.watching import (
    FAILED,
    WatchedTemplate,
    fill,
    remove_and_make,
    replaced,
    shop,
    switch,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with `mig/1.sql` in it, of its own: what lies above is watched as well."""
    return fill(tmp_path / "top" / "mig").parent


# A directory that is another one ------------------------------------------------------------


def move_away_and_another_in(mig: Path) -> None:
    fill(mig.with_name("new"), "SELECT 'moved in';")
    mig.rename(mig.with_name("old"))
    mig.with_name("new").rename(mig)


def remove_what_is_above(mig: Path) -> None:
    shutil.rmtree(mig.parent)
    fill(mig, "SELECT 'from above';")


def move_what_is_above(mig: Path) -> None:
    fill(mig.parent.with_name("other") / "mig", "SELECT 'other';")
    mig.parent.rename(mig.parent.with_name("old"))
    mig.parent.with_name("other").rename(mig.parent)


@pytest.mark.parametrize(
    "replace",
    [remove_and_make, move_away_and_another_in, remove_what_is_above, move_what_is_above],
)
@pytest.mark.parametrize("source", ["mig/*.sql", "mig/1.sql", "mig", "**/*.sql", "m*/1.sql"])
async def test_edits_in_a_directory_that_took_the_place_of_another_are_seen(
    here: Path, replace: Callable[[Path], None], source: str
) -> None:
    async with shop(here, source) as world:
        for turn in range(2):
            replace(here / "mig")
            await world.until_true()
            (here / "mig" / "1.sql").write_text(f"SELECT 'edited {turn}';")
            await world.until_true()
            shutil.rmtree(here.parent / "old", ignore_errors=True)
            shutil.rmtree(here / "old", ignore_errors=True)


async def test_sources_by_absolute_paths_are_watched_like_others(here: Path) -> None:
    fill(here.parent / "far" / "mig")
    for source in ("far/mig/*.sql", "far/mig", "far/mig/1.sql", "far/**/*.sql"):
        async with shop(here, str(here.parent / source)) as world:
            remove_and_make(here.parent / "far" / "mig")
            await world.until_true()
            (here.parent / "far" / "mig" / "1.sql").write_text(f"SELECT 'by {source}';")
            await world.until_true()


async def test_edits_behind_a_link_that_was_switched_are_seen(here: Path) -> None:
    fill(here / "v2", "SELECT 2;")
    (here / "current").symlink_to("mig")
    async with shop(here, "current/*.sql") as world:
        for target in ("v2", "mig", str(here / "v2")):
            switch(here / "current", target)
            await world.until_true()
            (here / "current" / "1.sql").write_text(f"SELECT 'edited by {target}';")
            await world.until_true()


# Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["mig/*.sql", "mig/2.sql", "mig", "**/*.sql"])
@pytest.mark.parametrize("edit", [Path.write_text, replaced])
async def test_a_file_is_watched_where_links_lead(
    here: Path, source: str, edit: Callable[[Path, str], None]
) -> None:
    elsewhere = fill(here.parent / "elsewhere") / "1.sql"
    (here.parent / "chain").symlink_to("elsewhere/1.sql")
    (here / "mig" / "2.sql").symlink_to("../../chain")
    async with shop(here, source) as world:
        edit(elsewhere, "SELECT 'edited';")
        await world.until_true()
        fill(here.parent / "third", "SELECT 3;")
        switch(here.parent / "chain", "third/1.sql")
        await world.until_true()
        edit(here.parent / "third" / "1.sql", "SELECT 'edited too';")
        await world.until_true()


async def test_a_link_in_the_middle_of_a_path_is_followed(here: Path) -> None:
    fill(here.parent / "real" / "mig")
    fill(here.parent / "second" / "mig", "SELECT 2;")
    (here / "app").symlink_to("../real")
    async with shop(here, "app/mig/*.sql") as world:
        (here.parent / "real" / "mig" / "1.sql").write_text("SELECT 'edited';")
        await world.until_true()
        switch(here / "app", "../second")
        await world.until_true()
        (here.parent / "second" / "mig" / "1.sql").write_text("SELECT 'edited too';")
        await world.until_true()


async def test_a_link_to_nowhere_is_watched_where_its_target_will_be(here: Path) -> None:
    (here / "mig" / "2.sql").symlink_to("../later/deep/2.sql")
    async with shop(here, "mig/*.sql") as world:
        fill(here / "later" / "deep")
        (here / "later" / "deep" / "2.sql").write_text("SELECT 'came later';")
        await world.until_true()
        assert "00002 mig/2.sql" in str(world.served)
        (here / "later" / "deep" / "2.sql").write_text("SELECT 'edited';")
        await world.until_true()


async def test_links_that_lead_to_themselves_or_back_up_end(here: Path) -> None:
    (here / "mig" / "self.sql").symlink_to("self.sql")
    (here / "mig" / "up").symlink_to("..")
    async with shop(here, "mig/*.sql") as world:
        (here / "mig" / "1.sql").write_text("SELECT 'edited';")
        await world.until_true()
    places = Places()
    places.add_pattern(str(here), "**/*.sql", "*.sql")
    assert {str(here), str(here / "mig")} <= places.watched.keys()


# What is not there yet ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("a/b/c/*.sql", "a/b/c/1.sql"),
        ("a/b/1.sql", "a/b/1.sql"),
        ("a*/x/b*/*.sql", "a1/x/b1/1.sql"),
        ("a/**/*.sql", "a/b/c/d/1.sql"),
        ("a", "a/1.sql"),
    ],
)
async def test_directories_that_are_made_later_are_watched(
    here: Path, source: str, file: str
) -> None:
    async with shop(here, source) as world:
        assert world.served == FAILED
        for directory in reversed((here / file).relative_to(here).parents[:-1]):
            (here / directory).mkdir()
            await anyio.sleep(0.02)  # sleeps: one after another
        (here / file).write_text("SELECT 1;")
        await world.until_true()
        assert world.served != FAILED
        (here / file).write_text("SELECT 2;")
        await world.until_true()


async def test_a_dump_and_what_a_command_names_are_watched_where_links_lead(here: Path) -> None:
    fill(here.parent / "store")
    (here / "dump").symlink_to("../store/1.sql")
    (here / "alembic.ini").symlink_to("../store/1.sql")
    section = TemplateSection(
        dump="dump", command=CommandSection(run="true", watch=["alembic.ini", "py/**/*.py"])
    )
    async with watched(WatchedTemplate(here, section)) as world:
        assert world.served == FAILED
        (here / "py" / "more").mkdir(parents=True)
        (here / "py" / "more" / "0001.py").write_text("pass")
        await world.until_true()
        (here.parent / "store" / "1.sql").write_text("SELECT 'edited';")
        await world.until_true()
        (here / "py" / "more" / "0001.py").write_text("...")
        await world.until_true()
        assert world.served != FAILED


async def test_an_included_file_is_watched_while_it_is_gone_and_when_it_is_replaced(
    here: Path,
) -> None:
    fill(here / "inc")
    (here / "mig" / "1.sql").write_text("\\ir ../inc/1.sql\n")
    async with shop(here, "mig/*.sql") as world:
        (here / "inc" / "1.sql").write_text("SELECT 'edited';")
        await world.until_true()
        shutil.rmtree(here / "inc")
        await world.until_true()
        fill(here / "inc", "SELECT 'again';")
        await world.until_true()
        assert "inc/1.sql" in str(world.served)
        replaced(here / "inc" / "1.sql", "SELECT 'replaced';")
        await world.until_true()


# Many changes -------------------------------------------------------------------------------


async def test_a_file_replaced_at_once_is_seen_and_built_once(here: Path) -> None:
    async with shop(here, "mig/*.sql") as world:
        for number in range(3):
            replaced(here / "mig" / "1.sql", f"SELECT 'replaced {number}';")
            await world.until_true()
        assert world.builds.built == 4


async def test_a_checkout_of_many_files_is_built_once(here: Path) -> None:
    for number in range(300):
        (here / "mig" / f"{number}.sql").write_text(f"SELECT {number};")
    async with shop(here, "mig/*.sql") as world:
        for number in range(300):
            replaced(here / "mig" / f"{number}.sql", f"SELECT 'other {number}';")
            if number % 5 == 0:
                await anyio.sleep(0.05)  # sleeps: a checkout takes that long
        await world.until_true()
        assert world.builds.built <= 5  # of 60 states; on a quiet machine 2


async def test_a_template_that_keeps_changing_is_built_all_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clonepool.core.build_schedule.LONGEST_UNREST_SECONDS", 0.5)
    async with shop(here, "mig/*.sql") as world:
        with anyio.fail_after(20):
            number = 0
            while world.builds.built < 2:
                number += 1
                (here / "mig" / "1.sql").write_text(f"SELECT {number};")
                await anyio.sleep(0.03)  # sleeps: between two edits


async def test_what_lies_beside_the_sources_has_nothing_looked_at(here: Path) -> None:
    (here / "mig" / "x.pyc").write_text("")
    (here / ".git").mkdir()
    async with shop(here, "mig/*.sql", "**/*.sql") as world:
        await anyio.sleep(0.3)  # sleeps: what the start has looked at is over
        looks = 0

        async def look(templates: set[str]) -> None:
            nonlocal looks
            looks += 1
            await original(templates)

        original, world.templates.look = world.templates.look, look  # type: ignore[method-assign]
        for number in range(10):
            (here / "mig" / "x.pyc").write_text(str(number))
            (here / "mig" / f"{number}.log").write_text("")
            (here / ".git" / f"{number}.sql").write_text("")
            (here.parent / f"{number}.sql").write_text("")
        await anyio.sleep(0.5)  # sleeps: nothing must be checked in that time
        assert looks == 0
        (here / "mig" / "1.sql").write_text("SELECT 'edited';")
        await world.until_true()
        assert looks > 0


# Events while a build runs ------------------------------------------------------------------


async def test_an_edit_after_the_last_check_of_a_build_is_not_forgotten(here: Path) -> None:
    """The edit restores what was built before: then the check finds nothing new."""
    file = here / "mig" / "1.sql"
    before = file.read_text()
    async with shop(here, "mig/*.sql") as world:
        checked = anyio.Event()
        go_on = anyio.Event()

        async def before_ready() -> None:
            checked.set()
            await go_on.wait()

        world.builds.before_ready = before_ready
        real, world.templates.look = world.templates.look, ignored  # type: ignore[method-assign]
        file.write_text("SELECT 'for a moment';")
        world.templates.ask("shop", RecordedCall(), anew=True, progress=False)
        await checked.wait()
        world.templates.look = real  # type: ignore[method-assign]
        file.write_text(before)
        await anyio.sleep(0.5)  # sleeps: it is seen, and nothing differs from what was there before
        world.builds.before_ready = anyio.lowlevel.checkpoint
        go_on.set()
        await world.until_true()


async def ignored(templates: set[str]) -> None:
    """Look at nothing."""


async def test_an_edit_during_the_first_build_is_not_forgotten(here: Path) -> None:
    world = WatchedTemplate(here, TemplateSection(sql=["mig/*.sql"]))
    go_on = anyio.Event()
    world.builds.before_ready = go_on.wait
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.templates.run)
        tasks.start_soon(world.new_watcher().run)
        with anyio.fail_after(20):
            while "shop" not in world.builds.tried:
                await anyio.sleep(0.01)
        (here / "mig" / "1.sql").write_text("SELECT 'edited';")
        await anyio.sleep(0.3)  # sleeps: it is seen in the middle of the build
        go_on.set()
        await world.until_true()
        tasks.cancel_scope.cancel()
