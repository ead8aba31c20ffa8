from __future__ import annotations

from pathlib import Path

import pytest

from clonepool.errors import ResourceError, ServerUnavailableError
from clonepool.postgres.templates.psql.runner import explain

FILE = Path("/x/2_rows.sql")


def test_an_error_is_told_with_file_line_sqlstate_message_and_statement() -> None:
    stderr = """\
psql:/x/2_rows.sql:12: ERROR:  42P01: relation "nowhere" does not exist
LINE 2:   FROM nowhere;
               ^
LOCATION:  parserOpenTable, parse_relation.c:1449
psql:/x/2_rows.sql:12: STATEMENT:  SELECT *
  FROM nowhere;
"""
    assert str(explain(FILE, stderr)) == (
        '/x/2_rows.sql:12: relation "nowhere" does not exist (SQLSTATE 42P01)'
        " in statement: SELECT * FROM nowhere;"
    )


def test_notices_before_the_error_are_not_taken_for_it() -> None:
    stderr = (
        "psql:/x/2_rows.sql:1: WARNING:  01000: careful\nLOCATION:  f, g.c:1\n"
        "psql:/x/2_rows.sql:3: ERROR:  23505: duplicate key\nLOCATION:  f, g.c:1\n"
    )
    assert "2_rows.sql:3: duplicate key (SQLSTATE 23505)" in str(explain(FILE, stderr))


def test_an_error_in_an_included_file_names_that_file() -> None:
    stderr = 'psql:/x/part/a.sql:7: ERROR:  42601: syntax error at or near "x"\n'
    assert str(explain(FILE, stderr)).startswith("/x/part/a.sql:7: syntax error")


def test_what_psql_says_itself_is_passed_on() -> None:
    assert "No such file" in str(explain(FILE, "psql: error: a.sql: No such file or directory"))


def test_a_server_that_goes_away_is_not_the_files_fault() -> None:
    ended = "psql:/x/2_rows.sql:3: FATAL:  57P01: terminating connection\n"
    assert isinstance(explain(FILE, ended), ServerUnavailableError)
    lost = "psql:/x/2_rows.sql:3: server closed the connection unexpectedly"
    assert isinstance(explain(FILE, lost, 2), ServerUnavailableError)


@pytest.mark.parametrize(
    "refusal",
    [
        "sorry, too many clients already",
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
        'too many connections for role "app"',
    ],
)
def test_a_psql_that_finds_no_connection_names_the_limit(refusal: str) -> None:
    said = f"psql: error: connection to server on socket failed: FATAL:  {refusal}"
    error = explain(FILE, said, 2)
    assert isinstance(error, ResourceError)
    assert error.limit == "max_connections"
    assert "SQLSTATE 53300" in str(error)
    assert "max_connections" in error.remedy
