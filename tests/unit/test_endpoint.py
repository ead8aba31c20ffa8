from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import ConfigError
from clonepool.postgres.endpoint import Endpoint, from_url, without_secrets

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("PGPASSWORD", "PGPASSFILE", "PGHOST", "PGPORT", "PGUSER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint("db.example.org", 5433, "me", "p@ss/w:rd", "postgres", {"sslmode": "require"}),
        Endpoint("/run/post gres", 5432, "o'brien", "", "postgres"),
        Endpoint("::1", 5432, "me", "x", "main"),
    ],
)
def test_a_url_leads_back_to_where_it_was_made(endpoint: Endpoint) -> None:
    assert from_url(endpoint.url(endpoint.maintenance)) == endpoint


def test_the_variables_name_the_database() -> None:
    env = Endpoint("/tmp/x", 5432, "me", "secret").env("clone_1")
    assert env == {
        "DATABASE_URL": "postgresql://me:secret@/clone_1?host=/tmp/x&port=5432",
        "PGHOST": "/tmp/x",
        "PGPORT": "5432",
        "PGUSER": "me",
        "PGPASSWORD": "secret",
        "PGDATABASE": "clone_1",
    }


def test_the_password_comes_from_the_url_then_the_environment_then_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".pgpass").write_text(
        "# comment\n*:*:*:you:other\nlocalhost:5432:*:me:from\\:file\n"
    )
    assert from_url("postgresql://me@localhost").password == "from:file"
    monkeypatch.setenv("PGPASSWORD", "from env")
    assert from_url("postgresql://me@localhost").password == "from env"
    assert from_url("postgresql://me:url@localhost").password == "url"


def test_pgpassfile_names_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("h:*:*:me:found\n")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "elsewhere"))
    assert from_url("postgresql://me@h:6000/db").password == "found"
    assert from_url("postgresql://you@h:6000/db").password == ""


def test_several_hosts_are_refused() -> None:
    with pytest.raises(ConfigError, match="several hosts"):
        from_url("postgresql://me@a,b/db")


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="port"):
        from_url("postgresql://me@a:x/db")


def test_what_only_libpq_understands_reaches_psql_and_not_asyncpg() -> None:
    endpoint = from_url("postgresql://me@h/db?sslmode=require&connect_timeout=5&gssencmode=disable")
    assert endpoint.asyncpg_url("x") == "postgresql://me@h:5432/x?sslmode=require"
    env = endpoint.env("x")
    assert (env["PGSSLMODE"], env["PGCONNECT_TIMEOUT"]) == ("require", "5")


@pytest.mark.parametrize(
    ("url", "bare", "secrets"),
    [
        ("postgresql://me@h/db", "postgresql://me@h/db", {}),
        (
            "postgresql://me:p%40s@h:1,i:2/d?a=b",
            "postgresql://me@h:1,i:2/d?a=b",
            {"password": "p@s"},
        ),
        (
            "postgresql:///db?password=a%26b&host=/x",
            "postgresql:///db?host=/x",
            {"password": "a&b"},
        ),
        (
            "postgres://:p@h/db?sslpassword=s&sslkey=k",
            "postgres://@h/db?sslkey=k",
            {"password": "p", "sslpassword": "s"},
        ),
    ],
)
def test_secrets_are_taken_out_of_a_url_and_nothing_else_is(
    url: str, bare: str, secrets: dict[str, str]
) -> None:
    assert without_secrets(url) == (bare, secrets)


@pytest.mark.parametrize(
    "password", ["p@ss/w0rt", "p#w0rt", "p?w0rt", "w0rt/@", "w0rt[", "\u2100w0rt"]
)
def test_a_server_whose_url_cannot_be_read_is_not_repeated(password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_url(f"postgresql://me:{password}@h/db")
    assert "w0rt" not in caught.value.sentence()
