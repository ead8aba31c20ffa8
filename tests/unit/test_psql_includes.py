"""Which files a script reads, by following its commands as psql does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.config import TemplateSection
from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates.file_digests import Digests
from clonepool.postgres.templates.psql.includes import Findings, first_missing, read
from clonepool.postgres.templates.psql.script_events import events_of
from clonepool.postgres.templates.recipe import Recipe, read_files, watched_files

if TYPE_CHECKING:
    from pathlib import Path

INCLUDES = [
    r"\i part.sql",
    r"\i 'part.sql'",
    r"\i 'pa''rt.sql'",
    r"\i 'pa\x72t.sql' \\ SELECT 1;",
    r"\i part.sql; -- a comment is a further argument",
    r"\include part.sql",
    r"\ir part.sql",
    r"\include_relative 'part.sql'",
    r"SELECT 1 \i part.sql",
    r"\echo one \i part.sql",
    r"SELECT '\\i other.sql' \\ \i part.sql",
    "\\set f part.sql\n\\i :f",
    "\\set f part\n\\i :f'.sql'",
    "\\set name rt\n\\set f pa :name .sql\n\\ir :f",
    "\\set m '\\\\i part.sql'\n:m",
    "\\cd ..\n\\cd main\n\\i part.sql",
    "SELECT 'x' AS g \\gset\n\\set f part.sql\n\\i :f",
    "\\set f part.sql\nSELECT 'x' AS g \\gset\n\\i :f",
    "\\set f part.sql\nSELECT * FROM t \\gset p_\n\\i :f",
    "\\if true\n\\i part.sql\n\\else\n\\i absent.sql\n\\endif",
    "\\if no\n\\i absent.sql\n\\elif :{?env}\n\\i absent.sql\n\\elif 1\n\\i part.sql\n\\endif",
    "\\if :{?env}\n\\else\n\\set env part\n\\endif\n\\i :env.sql",
    "COPY t FROM stdin;\n\\i absent.sql\n\\.\n\\i part.sql",
    "COPY t FROM stdin \\g\n'\n\\.\n\\i part.sql",
    "\\copy t from stdin\n'\n\\.\n\\i part.sql",
    "SELECT $a$ \\i absent.sql $a$, a$a$ \\i part.sql",
    "/* /* nested */ \\i absent.sql */ \\i part.sql",
    "SET standard_conforming_strings = off;\nSELECT 'it\\'s';\n\\i part.sql",
    "\ufeff\\i part.sql\r\nSELECT 1;\r\n",
]
"""Each includes part.sql (or pa'rt.sql), and nothing else."""
DATA = [
    r"\copy t from part.csv",
    r"\copy t from 'part.csv' csv header",
    r'\copy "s"."t" (a, "b)") FROM part.csv',
    r"\lo_import part.csv",
    r"\lo_import 'part.csv' 'a comment'",
    "COPY t (a) FROM '{place}/part.csv' CSV;",
    "COPY t FROM E'{place}/pa\\x72t.csv' \\g",
    "\\set f {place}/part.csv\nCOPY t FROM :'f';",
    "SELECT pg_read_file('{place}/part.csv');",
    "SELECT lo_import('{place}/part.csv');",
    "DO $$ BEGIN PERFORM pg_read_binary_file('{place}/part.csv'); END $$;",
    "DO $$ BEGIN COPY t FROM '{place}/part.csv'; END $$;",
]
UNSEEN = [
    r"\copy t from program 'cat part.csv'",
    r"\set content `cat part.csv`",
    r"\! echo hello",
    "\\if `test -e part.csv`\n\\endif",
    "COPY t FROM PROGRAM 'cat part.csv';",
    "COPY t FROM '/nowhere/part.csv';",
    "SELECT pg_read_file('part.csv');",
    "SELECT pg_read_file('/tmp/' || name) FROM t;",
    "SELECT 'x' AS f \\gset\nCOPY t FROM :'f';",
    "\\getenv dir HOME\n\\cd :dir\n\\copy t from part.csv",
]
WRONG = {
    r"\i absent.sql": "absent.sql: there is no such file",
    r"\copy t from absent.csv": "absent.csv: there is no such file",
    "\\getenv f FILE\n\\i :f": "which file .*i includes is not known",
    "\\set f part.sql\nSELECT 'x' AS f \\gset\n\\i :f": "which file .*i includes is not known",
    "\\set f part.sql\nSELECT * FROM t \\gset\n\\i :f": "which file .*i includes is not known",
    r"\i `echo part.sql`": "which file .*i includes is not known",
    "\\o made.sql\nSELECT 1;\n\\o\n\\i made.sql": "written by the script itself",
    r"\i main.sql": "included without end",
    r"\copy t from pstdin": "nothing to read",
    r"\i .": "is not a file",
}


@pytest.fixture
def main(tmp_path: Path) -> Path:
    (tmp_path / "main").mkdir()
    for name in ("part.sql", "pa'rt.sql", "part.csv"):
        (tmp_path / "main" / name).write_text("")
    return tmp_path / "main"


def following(main: Path, text: str) -> Findings:
    (main / "main.sql").write_text(text, newline="")
    return read(str(main / "main.sql"), Digests())


def inputs(main: Path, text: str, watch: list[str] | None = None) -> dict[str, dict[str, str]]:
    (main / "main.sql").write_text(text)
    recipe = Recipe("made", TemplateSection(sql=["main.sql"], watch=watch), main)
    return read_files(recipe, Digests()).entries


@pytest.mark.parametrize("text", INCLUDES)
def test_what_psql_would_include_decides(main: Path, text: str) -> None:
    found = following(main, text)
    name = "pa'rt.sql" if "''" in text else "part.sql"
    assert (found.included, found.errors) == ([str(main / name)], [])
    before = inputs(main, text)
    (main / name).write_text("SELECT 1;")
    assert inputs(main, text) != before


@pytest.mark.parametrize("text", DATA)
def test_what_psql_or_the_server_would_read_decides(main: Path, text: str) -> None:
    text = text.replace("{place}", str(main))
    before = inputs(main, text)
    (main / "part.csv").write_text("1\n")
    assert inputs(main, text) != before


@pytest.mark.parametrize("text", UNSEEN)
def test_what_cannot_be_seen_is_refused_until_files_are_named(main: Path, text: str) -> None:
    with pytest.raises(TemplateFailedError, match=r"main\.sql:\d+: .* unnoticed") as caught:
        inputs(main, text)
    assert "`watch`" in caught.value.remedy
    assert inputs(main, text, watch=[])
    before = inputs(main, text, watch=["*.csv"])
    (main / "part.csv").write_text("1\n")
    assert inputs(main, text, watch=["*.csv"]) != before


@pytest.mark.parametrize("text", WRONG)
def test_what_can_never_be_run_is_said_beforehand(main: Path, text: str) -> None:
    with pytest.raises(TemplateFailedError, match=rf"main\.sql:\d+: .*{WRONG[text]}"):
        inputs(main, text, watch=[])


@pytest.mark.parametrize(
    "text",
    [
        r"\copy t to made.csv",
        "\\copy (SELECT 1) to 'made.csv'\n\\copy t from made.csv",
        r"\copy t from stdin",
        r"SELECT 1 \g made.txt",
        r"\o |sort",
        r"\echo `date`",
        "SELECT ':part', '\\! rm', \"\\i x\" -- \\i y",
        "\\if false\n\\i absent.sql\n\\! rm\n\\c other\n\\endif",
        "SELECT x::text, a[1:2], '\\i x' AS \"\\i y\" FROM t; /* \\i z */",
        "INSERT INTO docs VALUES ('COPY t FROM ''/etc/passwd''; pg_read_file(''x'')');",
    ],
)
def test_what_only_writes_or_looks_like_it_is_let_be(main: Path, text: str) -> None:
    assert following(main, text) == Findings()


def test_names_begin_where_psql_runs_or_at_the_including_file(main: Path) -> None:
    (main / "deep").mkdir()
    for place in (main, main / "deep"):
        (place / "near.sql").write_text("")
    (main / "deep" / "a.sql").write_text("\\i near.sql\n\\ir near.sql\n")
    assert following(main, "\\i deep/a.sql").included == [
        str(main / "deep" / "a.sql"),
        str(main / "near.sql"),
        str(main / "deep" / "near.sql"),
    ]


def test_where_psql_runs_in_a_linked_directory_the_kernel_decides_what_lies_above(
    tmp_path: Path,
) -> None:
    (tmp_path / "releases" / "5").mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "5")
    (tmp_path / "releases" / "common.sql").write_text("")
    (tmp_path / "current" / "a.sql").write_text("\\i ../common.sql")
    found = read(str(tmp_path / "current" / "a.sql"), Digests())
    assert found.included == [str(tmp_path / "releases" / "common.sql")]


def test_a_branch_that_the_server_decides_is_followed_and_may_lack_its_files(main: Path) -> None:
    text = "SELECT true AS x \\gset\n\\if :x\n\\i part.sql\n\\i absent.sql\n\\endif"
    found = following(main, text)
    assert found.included == [str(main / "part.sql")]
    assert found.absent == [str(main / "absent.sql")]
    before = inputs(main, text)
    (main / "absent.sql").write_text("")
    assert inputs(main, text) != before


def test_a_value_that_a_branch_may_have_set_is_not_known(main: Path) -> None:
    text = "\\set f part\n\\getenv x X\n\\if :x\n\\set f other\n\\endif\n\\i :f.sql"
    with pytest.raises(TemplateFailedError, match="not known in advance"):
        inputs(main, text)


def test_a_cycle_that_ends_is_followed(main: Path) -> None:
    text = "\\if :{?again}\n\\i part.sql\n\\else\n\\set again 1\n\\i main.sql\n\\endif"
    found = following(main, text)
    assert (found.included, found.errors) == ([str(main / "main.sql"), str(main / "part.sql")], [])


@pytest.mark.long
def test_files_that_include_each_other_twice_are_given_up_soon(main: Path) -> None:
    for number in range(40):
        (main / f"{number}.sql").write_text(f"\\i {number + 1}.sql\n" * 2)
    found = following(main, "\\i 0.sql")
    assert "without end" in found.errors[0].what or "no such file" in found.errors[0].what


@pytest.mark.parametrize(
    "text",
    [
        "\\c other",
        "SELECT 1 \\connect - joe",
        "\\set go '\\\\c other'\n:go",
        "SELECT 'CREATE DATABASE x' WHERE true \\gexec",
        "SELECT 1\\; DROP DATABASE x;",
        "/* /* */ */ CREATE DATABASE x;",
    ],
)
def test_an_included_file_may_not_leave_the_database_either(main: Path, text: str) -> None:
    (main / "part.sql").write_text(f"SELECT 1;\n\n{text}\n")
    with pytest.raises(TemplateFailedError, match=r"part\.sql:[34]: .* would leave"):
        inputs(main, "\\set f part\n\\i :f'.sql'")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 1;\n\\q\nSELECT 2;", 2),
        ("\\getenv skip SKIP\n\\if :skip\n\\quit\n\\endif\n\\i part.sql", 3),
        ("\\set ON_ERROR_STOP off", 1),
        ("\\set ON_ERROR_STOP 'o'f", 1),
        ("SELECT 1 \\unset ON_ERROR_STOP", 1),
    ],
)
def test_what_may_leave_a_part_out_is_told(main: Path, text: str, line: int) -> None:
    (place,) = following(main, text).warnings
    assert str(place).startswith(f"{main}/main.sql:{line}: ")


@pytest.mark.parametrize(
    "text", ["SELECT 1;\n\\q\n-- that is all\n/* x */\n", "\\set ON_ERROR_STOP on\n"]
)
def test_what_leaves_nothing_out_is_not_told(main: Path, text: str) -> None:
    assert following(main, text).warnings == []


def test_what_comes_after_the_end_of_a_file_decides_nothing(main: Path) -> None:
    assert following(main, "\\q\n\\i absent.sql").errors == []
    (main / "part.sql").write_text("\\q\n")
    assert following(main, "\\i part.sql\n\\copy t from part.csv").data == [str(main / "part.csv")]


def test_files_are_watched_that_are_not_there_yet(main: Path) -> None:
    (main / "main.sql").write_text("\\i part.sql\n\\i absent.sql\n\\copy t from far/away/x.csv")
    recipe = Recipe("made", TemplateSection(sql=["main.sql"]), main)
    assert watched_files(recipe, Digests()) == [
        str(main / name) for name in ("main.sql", "part.sql", "absent.sql", "far")
    ]
    assert first_missing("/nowhere/at/all") == "/nowhere"


def test_two_files_of_one_name_elsewhere_both_decide(main: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.sql").write_text("")
    text = "\\i ../one/x.sql\n\\i ../two/x.sql"
    before = inputs(main, text)
    (tmp_path / "one" / "x.sql").write_text("SELECT 1;")
    assert inputs(main, text) != before


def test_a_plain_dump_is_followed_like_any_script(main: Path) -> None:
    (main / "dump.sql").write_text("\\i part.sql\n")
    recipe = Recipe("made", TemplateSection(dump="dump.sql"), main)
    before = read_files(recipe, Digests()).entries
    (main / "part.sql").write_text("SELECT 1;")
    assert read_files(recipe, Digests()).entries != before


@pytest.mark.parametrize("text", ["'", "\\i '", "$a$", "/*", "\\", "\\if", "`", '"', ":", "E'\\"])
def test_what_does_not_end_is_read_to_the_end(main: Path, text: str) -> None:
    events_of(text)
    following(main, text)


def test_what_was_found_belongs_to_the_text_that_was_read(main: Path) -> None:
    class Late(Digests):
        """The file is written to between the look at it and the reading."""

        def of(self, path: str | Path) -> str:
            digest = super().of(path)
            (main / "main.sql").write_text(r"\i part.sql")
            return digest

    (main / "main.sql").write_text("SELECT 1;")
    digests = Late()
    assert read(str(main / "main.sql"), digests).included
    (main / "main.sql").write_text("SELECT 1;")
    digests.of = super(Late, digests).of  # type: ignore[method-assign]
    assert read(str(main / "main.sql"), digests).included == []
