from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from clonepool.config import TemplateSection
from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates import file_digests
from clonepool.postgres.templates.analyze import split
from clonepool.postgres.templates.file_digests import (
    Digests,
    fingerprint,
    generation_name,
    natural_key,
    resolve,
)
from clonepool.postgres.templates.psql.script_events import ScriptEvent
from clonepool.postgres.templates.recipe import Recipe, differences, read_files

if TYPE_CHECKING:
    from pathlib import Path


def fill(directory: Path, **files: str) -> None:
    for name, text in files.items():
        (directory / f"{name}.sql").write_text(text)


def a_recipe(sql: list[str], directory: Path, *, analyze: bool = True) -> Recipe:
    return Recipe("blog", TemplateSection(sql=sql, analyze=analyze), directory)


def printed(sql: list[str], directory: Path, *, analyze: bool = True) -> str:
    """Return the fingerprint of files and an option."""
    inputs = read_files(a_recipe(sql, directory), Digests())
    return fingerprint({**inputs.entries, "options": {"analyze": analyze}})


def test_matches_of_a_glob_come_in_natural_order(tmp_path: Path) -> None:
    fill(tmp_path, v10="", v2="", v1="")
    assert [f.name for f in resolve("sql", ["*.sql"], tmp_path)] == ["v1.sql", "v2.sql", "v10.sql"]


@pytest.mark.parametrize(
    "names",
    [
        ["1_a", "2_a", "10_a", "20140924113530_a"],
        [  # of crates.io: Diesel's dashes came later
            "20140924113530_dumped_migration_1/up",
            "20140925132252_dumped_migration_10/up",
            "20140929103760_dumped_migration_32/up",
            "20141002222431_dumped_migration_54/up",
            "2017-08-31-000000_a/up",
            "2017-10-08-193512_a/up",
            "2020-01-15-110236_a/up",
        ],
        ["2014_10_12_000000_users", "2014_10_12_100000_resets", "2019_08_19_000000_jobs"],
        ["20140924", "20140924113530", "20140925", "20140925_1", "20140925_2", "20140925_10"],
        ["20140924113530", "20140924113530123", "20140924113531"],
        ["V2014.09.24.1__a", "V2014.09.24.2__a", "V2014.09.24.10__a"],
        ["V1_2__a", "V1_10__a", "V2__a"],
        ["20141399", "20141400"],
    ],
)
def test_numbers_come_by_value_and_dates_by_the_moment_they_name(names: list[str]) -> None:
    others_first = names[::-1]
    assert sorted(others_first, key=natural_key) == names


def test_patterns_keep_their_order(tmp_path: Path) -> None:
    fill(tmp_path, a="", b="")
    assert [f.name for f in resolve("sql", ["b.sql", "a.sql"], tmp_path)] == ["b.sql", "a.sql"]


def test_a_pattern_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TemplateFailedError, match=r"'absent/\*\.sql' names no file"):
        resolve("sql", ["absent/*.sql"], tmp_path)


def test_the_fingerprint_is_the_same_wherever_the_files_lie(tmp_path: Path) -> None:
    prints = set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        fill(tmp_path / place, a="1", b="2")
        prints.add(printed(["*.sql"], tmp_path / place))
    assert len(prints) == 1


def test_contents_names_order_and_facts_all_decide(tmp_path: Path) -> None:
    fill(tmp_path, a="1", b="2")
    seen = {printed(["a.sql", "b.sql"], tmp_path)}
    seen.add(printed(["b.sql", "a.sql"], tmp_path))
    seen.add(printed(["a.sql", "b.sql"], tmp_path, analyze=False))
    fill(tmp_path, b="3")
    seen.add(printed(["a.sql", "b.sql"], tmp_path))
    (tmp_path / "b.sql").rename(tmp_path / "c.sql")
    seen.add(printed(["a.sql", "c.sql"], tmp_path))
    assert len(seen) == 5


def test_what_a_file_includes_decides_too_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    fill(tmp_path, a="\\ir parts/one.sql\n")
    fill(tmp_path / "parts", one="\\ir two.sql\n", two="1")
    first = printed(["a.sql"], tmp_path)
    fill(tmp_path / "parts", two="2")
    assert printed(["a.sql"], tmp_path) != first


def test_a_directory_stands_for_the_sql_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    fill(tmp_path / "d", v10="", v9="")
    (tmp_path / "d" / "readme.txt").write_text("")
    assert [f.name for f in resolve("sql", ["d"], tmp_path)] == ["d/v9.sql", "d/v10.sql"]


def test_a_file_that_was_written_in_the_moment_it_was_read_is_read_again(tmp_path: Path) -> None:
    digests, file = Digests(), tmp_path / "a.sql"
    file.write_text("1")
    before, stamp = digests.of(file), file.stat()
    file.write_text("2")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digests.of(file) != before


def test_two_thousand_unchanged_files_are_checked_in_no_time(tmp_path: Path) -> None:
    for number in range(2000):
        file = tmp_path / f"{number}.sql"
        file.write_text(f"SELECT {number};")
        os.utime(file, (1, 1))
    recipe, digests = a_recipe(["*.sql"], tmp_path), Digests()
    first = read_files(recipe, digests)
    seconds = []
    for _ in range(5):
        began = time.thread_time()  # of the processor: others may have it meanwhile
        again = read_files(recipe, digests)
        seconds.append(time.thread_time() - began)
        assert again.full == first.full
    assert min(seconds) < 1.0  # `make bench` has the figure


def test_the_short_form_has_eight_characters() -> None:
    assert len(generation_name("f" * 64)) == 8


def test_the_difference_of_two_builds_is_told_in_words() -> None:
    before = {"sql": {"1 a": "x", "2 b": "y"}, "server": {"major": "17"}}
    now = {"sql": {"1 a": "z", "3 c": "y"}, "server": {"major": "17"}}
    assert differences(before, now) == [
        "sql: 3 c is new", "sql: 2 b is gone", "sql: 1 a was changed",
    ]  # fmt: skip
    assert differences(before, before) == []


def test_what_a_daemon_knows_of_files_the_next_one_knows_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, file = tmp_path / "digests.json", tmp_path / "a.sql"
    file.write_text("\\i b.inc\n")
    os.utime(file, (1, 1))
    # What was written just now is not trusted.
    monkeypatch.setattr(Digests, "_RECENT_NANOSECONDS", 0)
    first = Digests(kept)
    asked: list[str] = []

    def ask(text: str) -> list[ScriptEvent]:
        asked.append(text)
        return [ScriptEvent(1, r"\i", "b.inc")]

    digest, about = first.of(file), first.events(str(file), ask)
    first.save()
    again = Digests(kept)
    assert again.of(file) == digest
    assert again.events(str(file), ask) == about
    assert len(asked) == 1
    file.write_text("changed")
    assert again.of(file) != digest
    kept.write_text("{ not JSON")
    assert Digests(kept).of(file) == again.of(file)


def test_analyze_deals_its_tables_out_evenly() -> None:
    sized = [("a", 50), ("b", 30), ("c", 20), ("d", 10)]
    assert split(sized, 2) == [["a", "d"], ["b", "c"]]
    assert split([("a", 1)], 2) == [["a"]]
    assert split([], 2) == []


def test_a_file_whose_name_is_no_text_is_digested_and_forgotten_by_the_next_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_now", lambda: time.time_ns() + 10**10)
    for name in (b"plain.sql", b"strange\xff.sql"):
        with open(os.fsencode(tmp_path) + b"/" + name, "w") as file:  # noqa: PTH123 - bytes
            file.write("SELECT 1;")
    digests = Digests(tmp_path / "digests.json")
    found = resolve("sql", ["*.sql"], tmp_path, digests)
    assert [file.name for file in found] == ["plain.sql", "strange\\udcff.sql"]
    digests.save()
    remembered = (tmp_path / "digests.json").read_text()
    assert "plain.sql" in remembered
    assert "strange" not in remembered
