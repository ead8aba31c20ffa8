"""Files that would leave the template's database are found before psql runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import TemplateFailedError
from clonepool.postgres.templates.dumps import roles_in, without_roles
from clonepool.postgres.templates.psql.guard import check_stays, find_escapes
from clonepool.postgres.templates.psql.scripts import blank

if TYPE_CHECKING:
    from pathlib import Path

CAUGHT = {
    "\\c other": (1, "\\c"),
    "SELECT 1;\n\\connect - joe": (2, "\\connect"),
    "SELECT 1 \\c other": (1, "\\c"),
    "-- why\n/* on\n*/ create\n  database other;": (3, "create database"),
    "DROP DATABASE IF EXISTS other;": (1, "DROP DATABASE"),
    "COPY t FROM stdin;\n\\c\n\\.\nDROP DATABASE x;": (4, "DROP DATABASE"),
    "SELECT 1;CREATE DATABASE x;": (1, "CREATE DATABASE"),
}
HARMLESS = [
    "-- \\c other\nSELECT '\\c other', \"CREATE DATABASE x\";",
    "DO $do$ BEGIN\nRAISE NOTICE 'x';\nCREATE DATABASE x;\nEND $do$;",
    "COPY t (a, b) FROM stdin WITH (FORMAT text);\n\\connect x\nCREATE DATABASE x;\n\\.\n",
    "\\copy t FROM rows.csv",
    "SELECT E'it\\'s \\c';",
    "COMMENT ON DATABASE x IS 'drop database';\nALTER DATABASE x SET work_mem = '8MB';",
    "/* DROP DATABASE x; */",
]


@pytest.mark.parametrize("text", CAUGHT)
def test_what_leaves_the_database_is_found_with_its_line(text: str) -> None:
    assert next(find_escapes(text)) == CAUGHT[text]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert list(find_escapes(text)) == []


def test_blanking_keeps_the_length_and_the_lines() -> None:
    for text in (*CAUGHT, *HARMLESS):
        assert len(blank(text)) == len(text)
        assert blank(text).count("\n") == text.count("\n")


def test_included_files_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.sql").write_text("\\ir deep/b.sql\n")
    (tmp_path / "deep" / "b.sql").write_text("\\ir c.sql\n")
    (tmp_path / "deep" / "c.sql").write_text("SELECT 1;\nDROP DATABASE x;\n")
    with pytest.raises(TemplateFailedError, match=r"c\.sql:2: DROP DATABASE would leave"):
        check_stays(tmp_path / "a.sql")


DUMP = """\
CREATE TABLE public.t (a text);
ALTER TABLE public.t OWNER TO "the owner";
COPY public.t (a) FROM stdin;
ALTER TABLE x OWNER TO nobody;
\\.
GRANT SELECT ON TABLE public.t TO reader;
REVOKE ALL ON TABLE public.t FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE giver IN SCHEMA public GRANT SELECT ON TABLES TO taker;
"""


def test_the_roles_of_a_dump_are_found_outside_of_its_rows() -> None:
    assert roles_in(blank(DUMP, keep_names=True)) == [
        "giver", "reader", "taker", "the owner",
    ]  # fmt: skip


def test_what_speaks_of_roles_is_taken_out_and_rows_are_left_alone() -> None:
    left = without_roles(DUMP)
    assert [line for line in left.splitlines() if line] == [
        "CREATE TABLE public.t (a text);",
        "COPY public.t (a) FROM stdin;",
        "ALTER TABLE x OWNER TO nobody;",
        "\\.",
    ]
    assert left.count("\n") == DUMP.count("\n")
