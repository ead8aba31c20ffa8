"""The role as which a lease logs in, and what it can access."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import ClonepoolError
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import ask, clones_of, run, value

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER = CONFIG + 'rights = "owner"\nowner = "app"\n'
USERS = 40
SUPERUSER = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
WRITE = """\
WITH new AS (INSERT INTO blog.tb_tag (name) VALUES ('x') RETURNING 1) SELECT count(*) FROM new"""
REFUSED = r"pg_hba|permission denied|password authentication failed"
OWNED = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'tb_user'"


@pytest.fixture(scope="module", params=["superuser", "owner"])
def either(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with running_daemon(OWNER if request.param == "owner" else CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    with running_daemon(OWNER) as running:
        yield running


def roles_of(daemon: Daemon) -> set[str]:
    found = ask(
        daemon,
        "SELECT coalesce(string_agg(rolname, ' '), '') FROM pg_roles WHERE rolname LIKE 'cp\\_%'",
    )
    return set(str(found).split())


def test_each_lease_has_a_login_of_its_own(either: Daemon) -> None:
    with either.client() as client:
        first, second = (client.lease("blog", timeout=30) for _ in range(2))
        assert first.user == first.env["PGUSER"] == first.database != second.user
        assert first.password == first.env["PGPASSWORD"] != second.password
        for lease in (first, second):
            assert value(lease.url, "SELECT current_user") == lease.database
            assert value(lease.url, WRITE) == 1
            assert value(lease.url, "SELECT has_schema_privilege('public', 'CREATE')") is True
        first.release()
        second.release()


def test_what_a_lease_may_do_is_one_setting(own: Daemon, shared_daemon: Daemon) -> None:
    for daemon, superuser, owner in ((own, False, "app"), (shared_daemon, True, "postgres")):
        with daemon.client() as client, client.lease("blog", timeout=30) as lease:
            assert value(lease.url, SUPERUSER) is superuser
            assert value(lease.url, OWNED) == owner


def test_what_a_template_extends_belongs_to_its_own_owner() -> None:
    upper = '[templates.upper]\nextends = "blog"\nrights = "owner"\nowner = "app"\nmin_ready = 1\n'
    with running_daemon(CONFIG + upper) as daemon, daemon.client() as client:
        with client.lease("upper", timeout=30) as lease:
            assert value(lease.url, SUPERUSER) is False
            assert value(lease.url, OWNED) == "app"
            assert value(lease.url, WRITE) == 1
            run(lease.url, "ALTER TABLE blog.tb_user ADD COLUMN added int")
        with client.lease("blog", timeout=30) as lease:
            assert value(lease.url, OWNED) == "postgres"


def test_a_lease_cannot_reach_another_lease_or_the_daemons_own_database(either: Daemon) -> None:
    with either.client() as client:
        first, second = (client.lease("blog", timeout=30) for _ in range(2))
        others = [second.database, "clonepool", *generations_of(either)]
        for other in others:
            with pytest.raises(ClonepoolError, match=f"{REFUSED}|not currently accepting"):
                value(first.url.replace(f"/{first.database}?", f"/{other}?"), "SELECT 1")
        with pytest.raises(ClonepoolError, match="password"):
            value(first.url.replace(first.password, second.password), "SELECT 1")
        first.release()
        second.release()


def generations_of(daemon: Daemon) -> list[str]:
    found = ask(daemon, "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname ~ '^cp_'")
    return [name for name in str(found).split() if "_t" in name and name not in clones_of(daemon)]


def test_an_owners_lease_reaches_no_database_but_its_own(own: Daemon) -> None:
    with own.client() as client, client.lease("blog", timeout=30) as lease:
        for other in ("postgres", "template1"):
            with pytest.raises(ClonepoolError, match=REFUSED):
                value(lease.url.replace(f"/{lease.database}?", f"/{other}?"), "SELECT 1")


def test_with_the_clone_goes_its_login(either: Daemon) -> None:
    with either.client() as client:
        lease = client.lease("blog", timeout=30)
        value(lease.url, "SELECT lo_from_bytea(0, 'abc')")  # not to be rewound
        lease.release()
    eventually(lambda: lease.database not in clones_of(either) | roles_of(either))
    eventually(either.at_rest)
    eventually(lambda: roles_of(either) == clones_of(either))


def test_a_reset_keeps_the_url_where_it_keeps_the_clone(either: Daemon) -> None:
    with either.client() as client:
        lease = client.lease("blog", timeout=30)
        before, url = lease.database, lease.url
        value(url, WRITE)
        lease.reset(timeout=30)
        assert lease.user == lease.database
        assert (lease.url == url) == (lease.database == before)
        assert value(lease.url, "SELECT count(*) FROM blog.tb_tag WHERE name = 'x'") == 0
        lease.release()


def test_a_lease_with_a_time_keeps_its_password_over_a_restart(own: Daemon) -> None:
    with own.client() as client:
        lease = client.lease("blog", timeout=30, ttl=60)
    for number in (15, 9):
        own.stop(number)
        own.start()
        assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == USERS
    with own.client() as client:
        again = client.call("reset", lease=lease.token, timeout=30)
        assert value(again["url"], "SELECT count(*) FROM blog.tb_user") == USERS
        client.call("release", lease=lease.token)


def test_logins_of_clones_that_are_gone_are_swept_and_parked_clones_get_new_passwords(
    own: Daemon,
) -> None:
    eventually(own.at_rest)
    with own.client() as client:
        lease = client.lease("blog", timeout=30)
        lease.release()
    eventually(own.at_rest)
    own.stop()
    own.start()
    eventually(own.at_rest)
    with pytest.raises(ClonepoolError, match=f"{REFUSED}|does not exist"):
        value(lease.url, "SELECT 1")
    with own.client() as client, client.lease("blog", timeout=30) as held:
        assert value(held.url, "SELECT current_user") == held.database
    own.stop(9)
    own.start()
    eventually(own.at_rest)
    eventually(lambda: roles_of(own) == clones_of(own))


def test_a_superuser_is_not_taken_for_the_owner_of_what_is_to_be_confined() -> None:
    with running_daemon(CONFIG + 'rights = "owner"\nowner = "postgres"\n') as running:

        def has_failed() -> bool:
            pool = running.pool()
            return pool["phase"] == "failed" and "role postgres is a superuser" in pool["failure"]

        eventually(has_failed)
