"""After any operations on files, the served state becomes the state of the files, by watches alone.

The same by periodic checks alone, and after a watcher was replaced while files changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clonepool.config import TemplateSection
from support import lanes
from support.watching import BY_LOOKS_ALONE, BY_WATCH_ALONE, WatchedTemplate, watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from clonepool.service.monitors.files import Pace

SOURCES = [
    "mig/*.sql",
    "current/*.sql",
    "one.sql",
    "tree/**/*.sql",
    "late*/x/*.sql",
    "base/app/mig",
]
DIRECTORIES = ["mig", "v1", "v2", "tree", "tree/a", "tree/a/b", "late1", "late1/x", "base"]
DIRECTORIES += ["base/app", "base/app/mig", "outside", "outside/app", "outside/app/mig"]
FILES = [f"{directory}/{name}.sql" for directory in DIRECTORIES for name in "12"]
FILES += ["one.sql", "inc/1.sql"]
LINKS = ["current", "base", "base/app", "mig", "mig/2.sql", "one.sql", "tree/a", "late1/x"]
TARGETS = [
    "v1",
    "v2",
    "mig",
    "outside",
    "outside/app",
    "v1/1.sql",
    "inc/1.sql",
    "nowhere",
    "current",
]
TEXTS = ["SELECT 1;", "SELECT 2;", "SELECT 3;\n\\ir ../inc/1.sql\n"]

Operation = tuple[str, str, str]
"""What is done, to which path, with what."""
Act = tuple[list[Operation], list[Operation]]
"""Operations without a watcher, and then with a new watcher."""


def operations() -> st.SearchStrategy[Operation]:
    files, directories = st.sampled_from(FILES), st.sampled_from(DIRECTORIES)
    anything = st.sampled_from([*FILES[:-1], *DIRECTORIES, *LINKS])
    unlike = st.integers(10, 99).map("SELECT {};".format)
    texts, nothing = st.sampled_from(TEXTS), st.just("")
    return st.one_of(
        st.tuples(st.sampled_from(["write", "replace"]), files, texts),
        st.tuples(st.sampled_from(["swap", "remake"]), directories, texts),
        st.tuples(st.just("edit"), st.sampled_from(["0", "1", "2"]), unlike),
        st.tuples(st.just("rename"), anything, anything),
        st.tuples(st.just("remove"), anything, nothing),
        st.tuples(st.just("make"), directories, nothing),
        st.tuples(st.just("link"), st.sampled_from(LINKS), st.sampled_from(TARGETS)),
    )


def write(path: Path, text: str) -> None:
    path.write_text(text)


def replace(path: Path, text: str) -> None:
    temporary = path.with_name(".temporary")
    temporary.write_text(text)
    temporary.rename(path)


def remove(path: Path, _: str = "") -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def make(path: Path, _: str = "") -> None:
    path.mkdir(parents=True)


def remake(path: Path, text: str) -> None:
    """Most often it gets the number that the other had."""
    remove(path)
    path.mkdir()
    (path / "1.sql").write_text(text)


def swap(path: Path, text: str) -> None:
    other = path.with_name("other")
    other.mkdir()
    (other / "1.sql").write_text(text)
    path.rename(path.with_name(f"old {len(list(path.parent.iterdir()))}"))
    other.rename(path)


def link(path: Path, target: str) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    top = next(each for each in path.parents if each.name == "top")
    temporary = path.with_name(".link")
    temporary.symlink_to(os.path.relpath(top / target, path.parent))
    temporary.rename(path)


DO: dict[str, Callable[[Path, str], object]] = {
    "write": write, "replace": replace, "remove": remove, "make": make,
    "remake": remake, "swap": swap, "link": link,
}  # fmt: skip


def do(top: Path, operation: Operation, sources: list[str]) -> None:
    """Do it if it can be done."""
    what, where, how = operation
    with contextlib.suppress(OSError):
        if what == "edit":
            found = [file for source in sources for file in sorted(top.glob(source))]
            if found:
                found[int(where) % len(found)].write_text(how)
            return
        if what == "rename":
            (top / where).rename(top / how)
        else:
            DO[what](top / where, how)


def furnish(top: Path) -> None:
    for directory in ("mig", "v1", "v2", "inc", "tree/a", "late1/x", "base/app/mig", "outside/app"):
        make(top / directory)
        (top / directory / "1.sql").write_text("SELECT 0;")
    (top / "one.sql").write_text("SELECT 0;\n\\ir inc/1.sql\n")
    (top / "v1" / "2.sql").write_text("SELECT 0;")
    (top / "current").symlink_to("v1")


async def play(story: list[Act], pace: Pace, sources: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="clonepool-test-") as above:
        top = Path(above) / "top"
        furnish(top)
        world = WatchedTemplate(top, TemplateSection(sql=sources), pace)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.templates.run)
            await world.built()
            for unseen, seen in story:
                for operation in unseen:
                    do(top, operation, sources)
                async with watching(world):
                    for operation in seen:
                        await see_done(world, operation, sources)
                    await world.until_true()
            tasks.cancel_scope.cancel()


async def see_done(world: WatchedTemplate, operation: Operation, sources: list[str]) -> None:
    match operation[0]:
        case "settle":
            await world.until_true()
        case "breathe":
            await anyio.sleep(0.06)  # sleeps: in the middle of what goes on
        case _:
            do(world.directory, operation, sources)


def run(story: list[Act], pace: Pace, sources: list[str]) -> None:
    backend: dict[str, Any] = {"use_uvloop": True}
    anyio.run(play, story, pace, sources, backend_options=backend)


EDITS = st.tuples(st.just("edit"), st.sampled_from("01"), st.sampled_from(["-- 8", "-- 9"]))
SETTLE, BREATHE = ("settle", "", ""), ("breathe", "", "")
STEPS = st.one_of(
    # A watch that was lost shows in the edit that follows when all had settled.
    st.tuples(operations(), st.just(SETTLE), EDITS, st.sampled_from([SETTLE, BREATHE])),
    st.tuples(operations(), st.just(BREATHE), operations()),
    st.tuples(operations()),
    st.tuples(EDITS),
)
ACTS = st.tuples(
    st.lists(operations(), max_size=2),
    st.lists(STEPS, min_size=1, max_size=5).map(lambda steps: [each for s in steps for each in s]),
)
STORIES = st.lists(ACTS, min_size=1, max_size=2)
CHOICES = st.lists(st.sampled_from(SOURCES), min_size=1, max_size=2, unique=True)
UNHURRIED = settings(
    max_examples=lanes.examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.timeout(600)
@UNHURRIED
@given(STORIES, CHOICES)
def test_by_the_watches_alone_what_is_served_is_what_the_files_say(
    story: list[Act], sources: list[str]
) -> None:
    run(story, BY_WATCH_ALONE, sources)


@pytest.mark.timeout(600)
@UNHURRIED
@given(STORIES, CHOICES)
def test_by_slow_looks_alone_what_is_served_is_what_the_files_say(
    story: list[Act], sources: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clonepool.service.monitors.watches.RustNotify", _Refused)
        run(story, BY_LOOKS_ALONE, sources)


class _Refused:
    def __init__(self, *_: object) -> None:
        raise OSError("OS file watch limit reached.")
