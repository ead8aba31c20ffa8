"""Our search finds what the standard library's does, and reports shortages as errors."""

from __future__ import annotations

import builtins
import errno
import glob
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clonepool.config import CommandSection, DumpSection, TemplateSection
from clonepool.errors import ResourceError
from clonepool.postgres.templates import globbing
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.recipe import Inputs, Recipe, read_files

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("a", "b.sql", ".hidden", "1[x]", "sub")
PARTS = ("*", "**", "a*", "?", "*.sql", ".*", "[ab]*", "1[[]x[]]", "..", ".", *NAMES)

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
patterns = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)


def plant(root: Path, files: list[str], link: str | None) -> None:
    """Make files where that can be, and a link to a directory."""
    for file in files:
        if not any(parent.is_file() for parent in (root / file).parents if parent != root):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            if not (root / file).exists():
                (root / file).touch()
    if link is not None and (root / link).is_dir():
        (root / "linked").symlink_to(root / link)


@given(files=st.lists(paths, max_size=5), pattern=patterns, link=st.none() | st.just("sub"))
def test_what_matches_is_what_glob_says(files: list[str], pattern: str, link: str | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "as", "deep", "as", "dots", "lead")  # others change what lies above
        root.mkdir(parents=True)
        plant(root, files, link)
        plain = str(Path(pattern))
        wanted = glob.glob(plain, root_dir=root, recursive=True)  # noqa: PTH207 - the model
        found = globbing.find(plain, root)
        assert sorted(_places(root, found)) == sorted(_places(root, wanted))
        absolute = glob.glob(str(root / plain), recursive=True)  # noqa: PTH207 - the model
        assert sorted(_places(root, globbing.find(str(root / plain), Path("/none")))) == sorted(
            _places(root, absolute)
        )


def _places(root: Path, found: list[str]) -> list[str]:
    """Return files alone: which directories match decides nothing."""
    whole = [os.path.normpath(root / path) for path in found]
    return [path for path in whole if Path(path).is_file()]


class Shortage:
    """Lets the n-th call that looks at the file system fail."""

    def __init__(self, number: int, at: int) -> None:
        self._number = number
        self.left = at

    def wrap(self, function: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(self._number, os.strerror(self._number))
            return function(*arguments, **options)

        return called


@contextmanager
def failing(number: int, at: int) -> Iterator[Shortage]:
    shortage = Shortage(number, at)
    with pytest.MonkeyPatch.context() as patch:
        for place, name in (
            (builtins, "open"), (os, "open"), (os, "scandir"), (os, "stat"), (os, "listdir"),
            (os, "lstat"), (os, "fstat"),
        ):  # fmt: skip
            patch.setattr(place, name, shortage.wrap(getattr(place, name)))
        yield shortage


def look(recipe: Recipe) -> Inputs | ResourceError:
    try:
        return read_files(recipe, Digests())
    except ResourceError as error:
        return error


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_whichever_look_fails_for_want_of_something_nothing_is_taken_for_missing(
    tmp_path: Path, number: int
) -> None:
    for name, text in {
        "sql/1.sql": "\\i more/2.sql\n",
        "sql/more/2.sql": "\\ir 3.sql\n",
        "sql/more/3.sql": "SELECT 1;\n",
        "deep/a/b/4.sql": "SELECT 1;\n",
        "dump/toc.dat": "PGDMP",
        "dump/1.dat": "1",
        "watched/5": "5",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    section = TemplateSection(
        sql=["sql", "deep/**/*.sql"],
        dump=DumpSection("dump"),
        command=CommandSection("true", watch=["watched/*"]),
    )
    recipe = Recipe("own", section, tmp_path)
    wanted = read_files(recipe, Digests())
    at = 0
    while True:
        at += 1
        with failing(number, at) as shortage:
            found = look(recipe)
        if isinstance(found, ResourceError):
            assert found.limit == ("memory" if number == errno.ENOMEM else "files")
            continue
        assert found == wanted, at
        if shortage.left > 0:
            break
    assert at > 20
