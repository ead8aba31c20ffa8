from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import ConfigError
from clonepool.postgres.endpoint import Endpoint, from_url

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
