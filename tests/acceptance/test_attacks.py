"""Attacks by leases beyond their time and rights, and accidents in scripts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from clonepool.errors import ClonepoolError
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import ask, clones_of, own_url, run, value

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = CONFIG.replace("min_ready = 3", "min_ready = 1").replace("max_clones = 12", "max_clones = 1")
RIGHTS = {"superuser": "", "owner": 'rights = "owner"\nowner = "app"\n'}
TAGS = "SELECT count(*) FROM blog.tb_tag"
STRAY = "INSERT INTO blog.tb_tag (name) VALUES ('stray')"
ROUNDS = 40


@pytest.fixture(scope="module", params=RIGHTS)
def one(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """Return a daemon with one clone, which each lease gets after the other."""
    with running_daemon(ONE + RIGHTS[request.param]) as running:
        yield running


def rights_of(daemon: Daemon) -> str:
    return "owner" if "rights" in daemon.config.read_text() else "superuser"


def test_a_former_holder_is_locked_out(one: Daemon) -> None:
    with one.client() as client:
        first = client.lease("blog", timeout=30)
        url, clone = first.url, first.database
        first.release()
        with client.lease("blog", timeout=30) as second:
            assert second.database == clone, "the clone was rewound"
            with pytest.raises(ClonepoolError, match="password authentication failed"):
                run(url, STRAY)
            assert value(second.url, TAGS) == value(second.url, f"{TAGS} WHERE name <> 'stray'")


def test_a_former_holders_pool_that_reconnects_all_the_time_reaches_no_later_lease(
    one: Daemon,
) -> None:
    """A pool reconnects when it likes: right after the release, during the rewind, afterwards."""
    current, over = [""], threading.Event()

    def reconnect() -> None:
        while not over.is_set():
            url = current[0]
            if url:
                try:
                    run(url, STRAY)
                except ClonepoolError:
                    continue

    threads = [threading.Thread(target=reconnect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with one.client() as client:
            for _ in range(ROUNDS):
                with client.lease("blog", timeout=60) as lease:
                    # Only this lease knows this URL so far.
                    assert value(lease.url, f"{TAGS} WHERE name = 'stray'") == 0
                    current[0] = lease.url
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_former_holder_does_not_come_in_after_a_restart(one: Daemon) -> None:
    with one.client() as client:
        lease = client.lease("blog", timeout=30)
        url = lease.url
        run(url, STRAY)
        lease.release()
    eventually(one.at_rest)
    for number in (15, 9):
        one.stop(number)
        one.start()
        eventually(one.at_rest)
        with pytest.raises(ClonepoolError, match=r"authentication failed|does not exist"):
            run(url, STRAY)
        with one.client() as client, client.lease("blog", timeout=30) as later:
            assert value(later.url, f"{TAGS} WHERE name = 'stray'") == 0


def test_a_stray_row_does_not_become_the_measure_of_what_is_clean(one: Daemon) -> None:
    """Changes that another session makes to a ready clone do not become the template's."""
    eventually(one.at_rest)
    (clone,) = clones_of(one)
    run(own_url(one, clone), STRAY)
    one.stop()
    one.start()
    eventually(one.at_rest)
    with one.client() as client:
        for _ in range(3):
            with client.lease("blog", timeout=30) as lease:
                assert value(lease.url, f"{TAGS} WHERE name = 'stray'") == 0
                run(lease.url, "DELETE FROM blog.tb_comment")
    assert not one.events("clone.proof_failed")


def test_a_clone_that_was_truncated_is_not_adopted_and_causes_no_warning(one: Daemon) -> None:
    """It has other files than its template after the rewind, as it should."""
    with one.client() as client:
        lease = client.lease("blog", timeout=30)
        run(lease.url, "TRUNCATE blog.tb_comment")
        lease.release()
    eventually(one.at_rest)
    before = len(one.events("clone.adopt_failed"))
    one.stop()
    one.start()
    eventually(one.at_rest)
    assert len(one.events("clone.adopt_failed")) == before
    with one.client() as client, client.lease("blog", timeout=30) as lease:
        assert value(lease.url, "SELECT count(*) > 0 FROM blog.tb_comment") is True


def test_rows_that_a_rewind_put_elsewhere_are_not_put_back_twice_after_a_restart() -> None:
    rows = "SELECT n, repeat('x', 300) FROM generate_series(1, 6000) AS n"
    config = ONE.split("[templates.blog]")[0] + '[templates.blog]\nsql = ["a.sql"]\nmin_ready = 1\n'
    with running_daemon(config, files={"a.sql": f"CREATE TABLE t AS {rows}"}) as daemon:
        change(daemon, "DELETE FROM t WHERE n IN (7, 3000, 5999)")
        daemon.stop()
        daemon.start()
        eventually(daemon.at_rest)
        change(daemon, "DELETE FROM t WHERE n = 9")  # on the page that 7 was on
        with daemon.client() as client, client.lease("blog", timeout=30) as lease:
            counted = "SELECT count(*) || ' ' || count(DISTINCT n) FROM t"
            assert value(lease.url, counted) == "6000 6000"


def change(daemon: Daemon, statement: str) -> None:
    """Let a lease do something, and its clone be recycled."""
    with daemon.client() as client, client.lease("blog", timeout=30) as lease:
        run(lease.url, statement)
    eventually(daemon.at_rest)


def test_a_reference_refuses_connections() -> None:
    """What clones are put back from is read over one session, and closed to all others."""
    rows = "SELECT n, repeat('x', 500) FROM generate_series(1, 9000) AS n"
    config = ONE.split("[templates.blog]")[0] + '[templates.blog]\nsql = ["a.sql"]\nmin_ready = 1\n'
    names = "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname ~ '{}'"
    with (
        running_daemon(config, files={"a.sql": f"CREATE TABLE t AS {rows}"}) as daemon,
        daemon.client() as client,
    ):
        with client.lease("blog", timeout=30) as lease:
            run(lease.url, "DELETE FROM t WHERE n = 7")
        eventually(daemon.at_rest)
        (reference,) = str(ask(daemon, names.format("_r[0-9a-z]+_[0-9a-z]+$"))).split()
        with pytest.raises(ClonepoolError, match="not currently accepting"):
            run(own_url(daemon, reference), "DELETE FROM t")


BREAKS = [
    "ALTER USER postgres PASSWORD 'postgres'",
    "ALTER ROLE postgres NOLOGIN",
    "ALTER ROLE clonepool NOLOGIN",
    "ALTER ROLE clonepool PASSWORD 'mine'",
    "ALTER ROLE clonepool VALID UNTIL '2000-01-01'",
    "ALTER ROLE clonepool CONNECTION LIMIT 0",
    "ALTER ROLE clonepool SET search_path = 'nowhere'",
    "ALTER ROLE clonepool SET role = 'postgres'",
    "ALTER ROLE clonepool RENAME TO gone",
    "ALTER ROLE ALL SET default_transaction_read_only = on",
    "ALTER DATABASE clonepool SET default_transaction_read_only = on",
    "ALTER DATABASE clonepool WITH ALLOW_CONNECTIONS false",
    "ALTER DATABASE postgres WITH ALLOW_CONNECTIONS false",
    "COPY (SELECT 1) TO PROGRAM 'cat >&2; rm -f postmaster.opts global/pg_filenode.map'",
    "COPY (SELECT 1) TO PROGRAM 'cat >&2; touch standby.signal'",
]


@pytest.mark.parametrize("statement", BREAKS)
def test_whatever_a_lease_did_to_the_server_the_next_start_serves(statement: str) -> None:
    with running_daemon(ONE) as daemon:
        with daemon.client() as client, client.lease("blog", timeout=30) as lease:
            run(lease.url, statement)
        daemon.stop()
        daemon.start()
        with daemon.client() as client, client.lease("blog", timeout=60) as lease:
            assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == 40
            assert value(lease.url, "SHOW default_transaction_read_only") == "off"


def test_alter_system_is_refused_or_forgotten() -> None:
    statement = "ALTER SYSTEM SET shared_preload_libraries = 'nope'"
    with running_daemon(ONE) as daemon:
        with daemon.client() as client, client.lease("blog", timeout=30) as lease:
            with pytest.raises(ClonepoolError, match="ALTER SYSTEM is not allowed"):
                run(lease.url, statement)
            # What versions before 17 can't refuse.
            run(
                lease.url,
                "COPY (SELECT 'shared_preload_libraries = ''nope''') TO PROGRAM"
                " 'cat >> postgresql.auto.conf'",
            )
        daemon.stop()
        daemon.start()
        with daemon.client() as client, client.lease("blog", timeout=60) as lease:
            assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == 40
        assert not daemon.events("cluster.discarded")


def test_a_lease_does_not_learn_the_daemons_own_way_in(one: Daemon) -> None:
    """Neither its name and a password, nor a password that would do."""
    with one.client() as client, client.lease("blog", timeout=30) as lease:
        assert "clonepool@" not in lease.url
        if rights_of(one) == "superuser":
            verifier = "SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = 'clonepool'"
            assert value(lease.url, verifier) is True


CONFINED = [
    "SET ROLE postgres",
    "SET ROLE clonepool",
    "SET SESSION AUTHORIZATION postgres",
    "ALTER ROLE app LOGIN",
    "ALTER ROLE app PASSWORD 'mine'",
    "CREATE ROLE mine",
    "ALTER SYSTEM SET work_mem = '1MB'",
    "CREATE DATABASE mine",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT rolpassword FROM pg_authid",
    "ALTER DATABASE postgres SET work_mem = '1MB'",
]


@pytest.fixture(scope="module")
def confined() -> Iterator[Daemon]:
    with running_daemon(ONE + RIGHTS["owner"]) as running:
        yield running


@pytest.mark.parametrize("statement", [*CONFINED, "SET ROLE app"])
def test_a_confined_lease_can_become_no_other_role_and_reach_nothing_else(
    confined: Daemon, statement: str
) -> None:
    with (
        confined.client() as client,
        client.lease("blog", timeout=30) as lease,
        pytest.raises(ClonepoolError, match=r"permission denied|must be|not allowed"),
    ):
        run(lease.url, statement)


def test_the_owner_of_a_template_cannot_log_in(confined: Daemon) -> None:
    assert ask(confined, "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'app'") is False


def test_fixture_loaders_can_keep_triggers_and_foreign_keys_out(one: Daemon) -> None:
    with one.client() as client, client.lease("blog", timeout=30) as lease:
        run(
            lease.url,
            "SET session_replication_role = replica; DELETE FROM blog.tb_user;"
            " ALTER TABLE blog.tb_comment DISABLE TRIGGER USER",
        )
        assert value(lease.url, "SELECT count(*) FROM blog.tb_user") == 0


def test_what_a_templates_files_say_runs_without_a_superusers_rights() -> None:
    escape = "RESET ROLE; SET ROLE NONE; ALTER ROLE app SUPERUSER;"
    config = ONE.split("[templates.blog]")[0] + '[templates.blog]\nsql = ["a.sql"]\nmin_ready = 1\n'
    with running_daemon(
        config + RIGHTS["owner"], files={"a.sql": f"CREATE TABLE t (); {escape}"}
    ) as daemon:
        eventually(lambda: daemon.pool()["phase"] == "failed")
        assert "permission denied" in daemon.pool()["failure"]
        assert ask(daemon, "SELECT rolsuper FROM pg_roles WHERE rolname = 'app'") is False
        (daemon.directory / "a.sql").write_text("RESET ROLE; CREATE TABLE t (); SET ROLE app;")
        eventually(lambda: daemon.pool()["phase"] == "ready")
        with daemon.client() as client, client.lease("blog", timeout=60) as lease:
            owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'"
            assert value(lease.url, owner) == "app"


def test_the_daemons_own_sessions_take_no_names_from_databases_of_others() -> None:
    """`starts_with(name, text)` in public once ran with the daemon's rights."""
    trap = (
        "CREATE OR REPLACE FUNCTION public.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS"
        " $f$ BEGIN EXECUTE 'CREATE ROLE trapped_{name}'; RETURN {value}; END $f$"
    )
    traps = [
        trap.format(name="starts_with", arguments="name, text", result="bool", value="true"),
        trap.format(name="concat_ws", arguments="text, oid, name", result="text", value="''"),
        trap.format(name="left", arguments="text, bigint", result="text", value="''"),
        trap.format(name="shobj_description", arguments="oid, text", result="text", value="''"),
    ]
    with running_daemon(ONE) as daemon:
        with daemon.client() as client, client.lease("blog", timeout=30) as lease:
            for database in (lease.database, "postgres", "template1"):
                run(lease.url.replace(f"/{lease.database}?", f"/{database}?"), "; ".join(traps))
        eventually(daemon.at_rest)
        with daemon.client() as client:
            for _ in range(3):
                with client.lease("blog", timeout=30) as lease:
                    run(lease.url, "DELETE FROM blog.tb_comment")
        daemon.stop()
        daemon.start()
        eventually(daemon.at_rest)
        caught = "SELECT count(*) FROM pg_roles WHERE rolname ~ '^trapped'"
        assert ask(daemon, caught) == 0
