"""As whom a lease logs in, and where that lets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import ClonepoolError
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import ask, clones_of, value

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = CONFIG + 'role = "app"\n'
OWN = CONFIG + 'role = "app"\nlease_roles = true\n'
USERS = 40
SUPERUSER = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
WRITE = """\
WITH new AS (INSERT INTO blog.tb_tag (name) VALUES ('x') RETURNING 1) SELECT count(*) FROM new"""


@pytest.fixture(scope="module")
def app() -> Iterator[Daemon]:
    with running_daemon(APP) as running:
        yield running


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    with running_daemon(OWN) as running:
        yield running


def roles_of(daemon: Daemon) -> set[str]:
    found = ask(
        daemon,
        "SELECT coalesce(string_agg(rolname, ' '), '') FROM pg_roles WHERE rolname LIKE 'cp\\_%'",
    )
    return set(str(found).split())


def test_a_template_with_a_role_is_owned_and_used_by_it(app: Daemon) -> None:
    with app.client() as client, client.lease("blog", timeout=30) as lease:
        assert lease.user == lease.env["PGUSER"] == "app"
        assert value(lease.url, "SELECT current_user") == "app"
        assert value(lease.url, SUPERUSER) is False
        owner = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'tb_user'"
        assert value(lease.url, owner) == "app"
        database = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1"
        assert value(lease.url, database.replace("$1", "current_database()")) == "app"
        assert value(lease.url, WRITE) == 1


def test_the_password_of_a_templates_role_outlives_the_daemon(app: Daemon) -> None:
    with app.client() as client:
        lease = client.lease("blog", timeout=30, ttl=60)
    app.stop()
    app.start()
    assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS
    with app.client() as client:
        client.call("release", lease=lease.token)


def test_each_lease_has_a_role_of_its_own_with_the_rights_of_the_templates(own: Daemon) -> None:
    with own.client() as client:
        first, second = (client.lease("blog", timeout=30) for _ in range(2))
        assert first.user == first.database != second.user
        assert first.password != second.password
        for lease in (first, second):
            assert value(lease.url, "SELECT current_user") == lease.database
            assert value(lease.url, SUPERUSER) is False
            assert value(lease.url, WRITE) == 1
            assert value(lease.url, "SELECT has_schema_privilege('public', 'CREATE')") is True
        first.release()
        second.release()


def test_a_lease_cannot_reach_another_database(own: Daemon) -> None:
    with own.client() as client:
        first, second = (client.lease("blog", timeout=30) for _ in range(2))
        for other in (second.database, "postgres", "template1"):
            with pytest.raises(ClonepoolError, match=r"pg_hba|permission denied"):
                value(first.url.replace(f"/{first.database}?", f"/{other}?"), "SELECT 1")
        with pytest.raises(ClonepoolError, match="password"):
            value(first.url.replace(first.password, second.password), "SELECT 1")
        first.release()
        second.release()


def test_with_the_clone_goes_its_role(own: Daemon) -> None:
    with own.client() as client:
        lease = client.lease("blog", timeout=30)
        value(lease.url, "SELECT lo_from_bytea(0, 'abc')")  # not to be rewound
        lease.release()
    eventually(lambda: lease.database not in clones_of(own) | roles_of(own))
    eventually(own.at_rest)
    eventually(lambda: roles_of(own) == clones_of(own))


def test_a_reset_gives_the_role_of_the_new_clone(own: Daemon) -> None:
    with own.client() as client:
        lease = client.lease("blog", timeout=30)
        before = lease.password
        lease.reset(timeout=30)
        assert lease.user == lease.database
        assert lease.password != before
        assert value(lease.url, "SELECT current_user") == lease.user
        lease.release()


def test_roles_of_clones_that_are_gone_are_swept_and_parked_clones_get_new_passwords(
    own: Daemon,
) -> None:
    eventually(own.at_rest)
    own.stop()
    own.start()
    eventually(own.at_rest)
    with own.client() as client, client.lease("blog", timeout=30) as lease:
        assert value(lease.url, "SELECT current_user") == lease.database
    own.stop(9)
    own.start()
    eventually(own.at_rest)
    eventually(lambda: roles_of(own) == clones_of(own))


def test_a_superuser_is_not_taken_for_a_templates_role() -> None:
    with running_daemon(CONFIG + 'role = "postgres"\n') as running:
        eventually(lambda: running.pool()["phase"] == "failed")
        assert "role postgres is a superuser" in running.pool()["failure"]
