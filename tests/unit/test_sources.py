from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import TemplateFailedError
from clonepool.postgres.sources import fingerprint, generation_name, resolve

if TYPE_CHECKING:
    from pathlib import Path


def fill(directory: Path, **files: str) -> None:
    for name, text in files.items():
        (directory / f"{name}.sql").write_text(text)


def test_matches_of_a_glob_come_in_natural_order(tmp_path: Path) -> None:
    fill(tmp_path, v10="", v2="", v1="")
    assert [f.name for f in resolve(["*.sql"], tmp_path)] == ["v1.sql", "v2.sql", "v10.sql"]


def test_patterns_keep_their_order(tmp_path: Path) -> None:
    fill(tmp_path, a="", b="")
    assert [f.name for f in resolve(["b.sql", "a.sql"], tmp_path)] == ["b.sql", "a.sql"]


def test_a_pattern_that_names_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TemplateFailedError, match=r"'absent/\*\.sql' names no file"):
        resolve(["absent/*.sql"], tmp_path)


def test_the_fingerprint_is_the_same_wherever_the_files_lie(tmp_path: Path) -> None:
    prints = set()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        fill(tmp_path / place, a="1", b="2")
        prints.add(fingerprint(resolve(["*.sql"], tmp_path / place), {"major": 18}))
    assert len(prints) == 1


def test_contents_names_order_and_facts_all_decide(tmp_path: Path) -> None:
    fill(tmp_path, a="1", b="2")
    seen = {fingerprint(resolve(["a.sql", "b.sql"], tmp_path), {"major": 18})}
    seen.add(fingerprint(resolve(["b.sql", "a.sql"], tmp_path), {"major": 18}))
    seen.add(fingerprint(resolve(["a.sql", "b.sql"], tmp_path), {"major": 17}))
    fill(tmp_path, b="3")
    seen.add(fingerprint(resolve(["a.sql", "b.sql"], tmp_path), {"major": 18}))
    (tmp_path / "b.sql").rename(tmp_path / "c.sql")
    seen.add(fingerprint(resolve(["a.sql", "c.sql"], tmp_path), {"major": 18}))
    assert len(seen) == 5


def test_the_short_form_has_eight_characters() -> None:
    assert len(generation_name("f" * 64)) == 8
