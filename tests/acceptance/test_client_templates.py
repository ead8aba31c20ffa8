"""Templates that clients make while the daemon runs: of a leased clone, or by filling one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from clonepool.errors import (
    AcquireTimeoutError,
    BadRequestError,
    ClientLimitError,
    CloneInUseError,
    ConnectionLostError,
    NotAllowedError,
    NotYourDefinitionError,
    NotYourLeaseError,
    ShuttingDownError,
    TemplateFailedError,
    UnknownTemplateError,
)
from support.daemons import Daemon, eventually, running_daemon
from support.queries import connected, run, value

if TYPE_CHECKING:
    from collections.abc import Iterator

SQL = {
    "a.sql": "CREATE TABLE t AS SELECT 1 AS v; CREATE SEQUENCE s;",
}
CONFIG = """\
[http]
listen = ""
[client_templates]
allow = true
max_templates = 3
fill_timeout = 4
unused_for = 600
shrink_after = 1
settings = { search_path = "app, public" }
[templates.shop]
sql = ["*.sql"]
min_ready = 2
max_clones = 6
shrink_after = 1
"""
V = "SELECT v FROM t"
LEFT = """\
SELECT array_agg(datname::text ORDER BY 1)
  FROM pg_database WHERE datname ~ '_b[0-9a-z]+_[0-9a-z]{8}$'
"""
GENERATIONS = "SELECT count(*) FROM pg_database WHERE datname ~ '_t0_'"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running_daemon(CONFIG, files=SQL) as running:
        yield running


def prepared(daemon: Daemon, template: str = "ready", change: str = "UPDATE t SET v = 7") -> str:
    """Make a snapshot of a changed clone; return its generation."""
    with daemon.client() as client, client.lease("shop", timeout=30) as lease:
        run(lease.url, change)
        return lease.snapshot(template)


def leased(daemon: Daemon, template: str, query: str = V) -> object:
    with daemon.client() as client, client.lease(template, timeout=30) as lease:
        return value(lease.url, query)


def nothing_is_left(daemon: Daemon) -> bool:
    with daemon.client() as client, client.lease("shop", timeout=30) as lease:
        return value(lease.url, LEFT) is None


# Snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_is_the_clone_as_it_was_and_the_lease_goes_on(daemon: Daemon) -> None:
    with daemon.client() as client, client.lease("shop", timeout=30) as lease:
        run(lease.url, "UPDATE t SET v = 7")
        run(lease.url, "SELECT nextval('s') FROM generate_series(1, 5)")
        run(lease.url, f"ALTER DATABASE \"{lease.database}\" SET work_mem = '7MB'")
        lease.snapshot("ready")
        run(lease.url, "UPDATE t SET v = 8")
        with client.lease("ready", timeout=30) as copy:
            assert value(copy.url, V) == 7
            assert value(copy.url, "SELECT last_value FROM s") == 5
            assert value(copy.url, "SHOW work_mem") == "7MB"
            run(copy.url, "DELETE FROM t")
        assert value(lease.url, V) == 8
    for _ in range(6):
        assert leased(daemon, "ready") == 7
        assert leased(daemon, "shop") == 1
    assert nothing_is_left(daemon)


def test_clones_of_a_snapshot_are_rewound_like_others(daemon: Daemon) -> None:
    prepared(daemon)
    names = set()
    for _ in range(5):
        with daemon.client() as client, client.lease("ready", timeout=30) as lease:
            names.add(lease.database)
            assert value(lease.url, V) == 7
            run(lease.url, "UPDATE t SET v = 9")
        eventually(lambda: daemon.pool("ready")["recycling"] == 0)
    assert len(names) < 5


def test_another_snapshot_of_that_name_takes_its_place(daemon: Daemon) -> None:
    first = prepared(daemon)
    with daemon.client() as client, client.lease("ready", timeout=30) as old:
        assert prepared(daemon, change="UPDATE t SET v = 8") != first
        assert value(old.url, V) == 7
        assert leased(daemon, "ready") == 8
        eventually(lambda: value(old.url, GENERATIONS) == 2, what="the former one is dropped")
    assert all(leased(daemon, "ready") == 8 for _ in range(4))


def test_a_snapshot_of_a_snapshots_clone(daemon: Daemon) -> None:
    prepared(daemon)
    with daemon.client() as client, client.lease("ready", timeout=30) as lease:
        run(lease.url, "INSERT INTO t VALUES (8)")
        lease.snapshot("more")
    assert leased(daemon, "more", "SELECT sum(v)::int FROM t") == 15


def test_while_somebody_is_connected_nothing_is_copied_unless_they_may_be_ended(
    daemon: Daemon,
) -> None:
    with daemon.client() as client, client.lease("shop", timeout=30) as lease:
        with connected(lease.url) as other:
            with pytest.raises(CloneInUseError, match=r"connected to .*pid \d+"):
                lease.snapshot("ready")
            assert other("SELECT 1") == 1
            lease.snapshot("ready", end_sessions=True)
        assert leased(daemon, "ready") == 1


def test_a_lease_that_ends_meanwhile_is_not_copied(daemon: Daemon) -> None:
    with daemon.client() as client, daemon.client() as other:
        lease = client.lease("shop", timeout=30)
        refused: list[str] = []

        def snapshot() -> None:
            try:
                lease.snapshot("ready")
            except NotYourLeaseError as error:
                refused.append(error.code)

        thread = threading.Thread(target=snapshot)
        with connected(lease.url):  # for this one it waits
            thread.start()
            time.sleep(0.3)  # sleeps: nothing tells that the snapshot waits
            other.call("release", lease=lease.token)
            thread.join()
        assert refused == ["not_your_lease"]
        with pytest.raises(UnknownTemplateError):
            client.lease("ready")
    assert nothing_is_left(daemon)


def test_names_that_are_taken_or_none_are_refused(daemon: Daemon) -> None:
    with daemon.client() as client, client.lease("shop", timeout=30) as lease:
        for name in ("shop", "Shop", "", "x" * 40, 'a"; DROP DATABASE x'):
            with pytest.raises(BadRequestError):
                lease.snapshot(name)
        with pytest.raises(NotYourLeaseError):
            client.call("snapshot", lease="wrong", template="ready")
        with client.define("content") as definition:
            run(definition.url, "CREATE TABLE t AS SELECT 3 AS v")
        with pytest.raises(BadRequestError, match="defined"):
            lease.snapshot(definition.template)
        for name in ("Made", "", "x" * 14):
            with pytest.raises(BadRequestError):
                client.define("content", name=name)
        for method in ("build", "explain"):
            with pytest.raises(BadRequestError, match="made by a client"):
                client.call(method, template=definition.template)


def test_without_leave_of_the_configuration_clients_make_nothing() -> None:
    config = CONFIG.replace("allow = true", "allow = false")
    with (
        running_daemon(config, files=SQL) as daemon,
        daemon.client() as client,
        client.lease("shop", timeout=30) as lease,
    ):
        with pytest.raises(NotAllowedError, match="not allowed to make templates"):
            lease.snapshot("ready")
        with pytest.raises(NotAllowedError):
            client.define("content")
        assert value(lease.url, GENERATIONS) == 1


def test_the_templates_that_were_unused_for_longest_give_way(daemon: Daemon) -> None:
    for name in ("one", "two", "three"):
        prepared(daemon, name)
    leased(daemon, "one")
    prepared(daemon, "four")
    with pytest.raises(UnknownTemplateError):
        leased(daemon, "two")
    with daemon.client() as client:
        leases = [client.lease(name, timeout=30) for name in ("one", "three", "four")]
        with pytest.raises(ClientLimitError, match="all are in use"):
            prepared(daemon, "five")
        leases[0].release()
        prepared(daemon, "five")
        eventually(lambda: value(leases[1].url, GENERATIONS) == 4, what="the given up are dropped")


def test_an_unused_template_is_removed_with_its_database() -> None:
    config = CONFIG.replace("unused_for = 600", "unused_for = 2")
    with running_daemon(config, files=SQL) as daemon:
        prepared(daemon)
        assert leased(daemon, "ready") == 7
        eventually(lambda: len(daemon.status()["pools"]) == 1, what="it is given up")
        eventually(lambda: leased(daemon, "shop", GENERATIONS) == 1)
        prepared(daemon)
        assert leased(daemon, "ready") == 7


def test_they_and_their_leases_outlive_the_daemon(daemon: Daemon) -> None:
    prepared(daemon)
    with daemon.client() as client, client.define("content") as definition:
        run(definition.url, "CREATE TABLE t AS SELECT 3 AS v")
    with daemon.client() as client:
        lease = client.lease("ready", timeout=30, ttl=60)
        run(lease.url, "UPDATE t SET v = 9")
    assert leased(daemon, definition.template) == 3
    daemon.stop()
    daemon.start()
    assert leased(daemon, "ready") == 7
    with daemon.client() as client:
        assert client.define("content").filled
        assert value(lease.url, V) == 9
        client.call("release", lease=lease.token)
    assert leased(daemon, definition.template) == 3


def test_without_leave_the_next_daemon_keeps_none(daemon: Daemon) -> None:
    prepared(daemon)
    daemon.stop()
    daemon.config.write_text(CONFIG.replace("allow = true", "allow = false"))
    daemon.start()
    with pytest.raises(UnknownTemplateError):
        leased(daemon, "ready")
    assert leased(daemon, "shop", GENERATIONS) == 1


def test_one_whose_database_is_gone_says_so_and_can_be_made_again(daemon: Daemon) -> None:
    prepared(daemon)
    with daemon.client() as client, client.lease("shop", timeout=30) as lease:
        name = "SELECT datname FROM pg_database WHERE datname ~ '_ready_.*_t0_'"
        gone = value(lease.url, name)
        run(lease.url, f"ALTER DATABASE {gone} IS_TEMPLATE false")
        run(lease.url, f"DROP DATABASE {gone}")
        eventually(lambda: daemon.pool("ready")["phase"] == "failed")
        with pytest.raises(TemplateFailedError, match="is gone"):
            client.lease("ready", timeout=5)
        run(lease.url, "UPDATE t SET v = 7")
        lease.snapshot("ready")
    assert leased(daemon, "ready") == 7


def test_a_snapshot_of_a_clone_with_a_role_of_its_own_keeps_nothing_of_that_role() -> None:
    config = CONFIG.replace("[templates.shop]", '[templates.shop]\nrights = "owner"\nowner = "app"')
    with running_daemon(config, files=SQL) as daemon, daemon.client() as client:
        with client.lease("shop", timeout=30) as lease:
            run(lease.url, "CREATE TABLE mine AS SELECT 5 AS v; GRANT SELECT ON mine TO app")
            lease.snapshot("ready")
            run(lease.url, "CREATE TABLE later ()")  # the clone is the lease's own still
        with client.lease("ready", timeout=30) as copy:
            assert value(copy.url, "SELECT v FROM mine") == 5
            owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'mine'"
            assert value(copy.url, owner) == "app"
            assert copy.user == copy.database
            run(copy.url, "INSERT INTO mine VALUES (6)")
        eventually(lambda: daemon.pool("shop")["ready"] >= 2)
        assert not daemon.events("clone.drop_failed")


# Definitions ----------------------------------------------------------------------------------


def test_exactly_one_client_fills_what_many_define(daemon: Daemon) -> None:
    fillers: list[str] = []
    names: list[str] = []

    def work() -> None:
        with daemon.client() as client:
            with client.define("migrations 1", name="app", timeout=30) as definition:
                if not definition.filled:
                    fillers.append(definition.database)
                    run(definition.url, "CREATE SCHEMA app; CREATE TABLE t AS SELECT 3 AS v")
                    time.sleep(0.3)  # sleeps: filling takes that long
            with client.lease(definition.template, timeout=30) as lease:
                assert value(lease.url, V) == 3
                assert value(lease.url, "SHOW search_path") == "app, public"
            names.append(definition.template)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fillers) == 1
    assert len(names) == 6
    assert len(set(names)) == 1
    assert names[0].startswith("app_")
    with daemon.client() as client:
        other = client.define("migrations 2", name="app")
        assert other.template != names[0]


def test_a_filler_that_dies_or_fails_frees_the_place(daemon: Daemon) -> None:
    filler = daemon.client()
    first = filler.define("content")
    assert not first.filled
    found: list[str] = []

    def wait() -> None:
        with daemon.client() as client, client.define("content", timeout=30) as second:
            found.append(second.database)
            raise ZeroDivisionError  # gives it up

    def wait_more() -> None:
        with daemon.client() as client, client.define("content", timeout=30) as third:
            found.append(third.database)
            run(third.url, "CREATE TABLE t AS SELECT 3 AS v")

    threads = [threading.Thread(target=_quietly, args=(work,)) for work in (wait, wait_more)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)  # sleeps: one after another
    filler.close()
    for thread in threads:
        thread.join()
    assert len({*found, first.database}) == 3
    assert leased(daemon, first.template) == 3
    assert nothing_is_left(daemon)


def _quietly(work: object) -> None:
    assert callable(work)
    try:
        work()
    except ZeroDivisionError:
        return


def test_a_database_that_is_not_filled_in_time_expires(daemon: Daemon) -> None:
    with daemon.client() as slow, daemon.client() as client:
        late = slow.define("content")
        assert late.expires_in_seconds == 4
        with pytest.raises(AcquireTimeoutError, match=r"waited 0\.\d+ s for another client"):
            client.define("content", timeout=0.2)
        with client.define("content", timeout=30) as definition:
            assert not definition.filled
            with pytest.raises(NotYourDefinitionError):
                late.finalize()
            run(definition.url, "CREATE TABLE t AS SELECT 3 AS v")
        with pytest.raises(NotYourDefinitionError):
            definition.finalize()
    assert leased(daemon, definition.template) == 3
    assert nothing_is_left(daemon)


def test_what_is_filled_belongs_to_the_role_that_is_configured() -> None:
    config = CONFIG.replace(
        "allow = true", 'allow = true\nrights = "owner"\nowner = "app"\nextensions = ["pg_trgm"]'
    )
    with running_daemon(config, files=SQL) as daemon, daemon.client() as client:
        with client.define("content") as definition:
            assert value(definition.url, "SELECT current_user::text") == "app"
            assert value(definition.url, "SELECT similarity('a', 'a')::int") == 1
            run(definition.url, "CREATE SCHEMA app; CREATE TABLE t AS SELECT 3 AS v")
        with client.lease(definition.template, timeout=30) as lease:
            owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'"
            assert value(lease.url, owner) == "app"
            assert value(lease.url, V) == 3


def test_a_daemon_that_is_killed_leaves_nothing_of_what_was_being_filled(daemon: Daemon) -> None:
    client = daemon.client()
    definition = client.define("content")
    run(definition.url, "CREATE TABLE t AS SELECT 3 AS v")
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    client.close()
    daemon.start()
    with daemon.client() as again, again.define("content") as other:
        assert not other.filled
        assert other.database != definition.database
        run(other.url, "CREATE TABLE t AS SELECT 4 AS v")
    assert leased(daemon, definition.template) == 4
    assert nothing_is_left(daemon)


def test_a_daemon_that_stops_refuses_waiters_and_drops_unfinished_templates(
    daemon: Daemon,
) -> None:
    said: list[str] = []

    def wait() -> None:
        with daemon.client() as other:
            try:
                other.define("content", timeout=30)
            except ShuttingDownError as error:
                said.append(error.code)

    with daemon.client() as client:
        definition = client.define("content")
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)  # sleeps: nothing tells that the other waits
        daemon.stop()
        thread.join()
        assert said == ["shutting_down"]
        with pytest.raises(ConnectionLostError):
            definition.finalize()
    daemon.start()
    assert not [line for line in daemon.events("database.swept") if definition.database in line]
    assert not daemon.events("work.failed")


def test_one_that_is_given_up_and_filled_again_belongs_to_the_same_role() -> None:
    config = CONFIG.replace("allow = true", 'allow = true\nrights = "owner"\nowner = "app"')
    config = config.replace("max_templates = 3", "max_templates = 1")
    with running_daemon(config, files=SQL) as daemon, daemon.client() as client:
        names = set()
        for content in ("one", "two", "one", "two"):
            with client.define(content) as definition:
                assert not definition.filled
                assert value(definition.url, "SELECT current_user::text") == "app"
                run(definition.url, "CREATE TABLE t AS SELECT 3 AS v")
            with client.lease(definition.template, timeout=30) as lease:
                owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'"
                assert value(lease.url, owner) == "app"
                assert value(lease.url, V) == 3
            names.add(definition.template)
        assert len(names) == 2
        assert not daemon.events("work.failed")


def test_a_name_stays_with_the_template_that_it_was_made_of(daemon: Daemon) -> None:
    prepared(daemon)
    with daemon.client() as client:
        with client.define("content") as definition:
            run(definition.url, "CREATE TABLE t AS SELECT 3 AS v")
        with client.lease(definition.template, timeout=30) as lease:
            with pytest.raises(BadRequestError, match="a snapshot of shop"):
                lease.snapshot("ready")
            lease.snapshot("other")
    assert leased(daemon, "other") == 3
    assert leased(daemon, "ready") == 7


def test_a_lease_whose_template_is_not_there_any_more_cannot_be_copied(daemon: Daemon) -> None:
    with daemon.client() as client:
        token = client.lease("shop", timeout=30, ttl=60).token
    daemon.stop()
    (daemon.directory / "a.sql").write_text("SELEC 1;")
    daemon.start()
    eventually(lambda: daemon.pool("shop")["phase"] == "failed")
    with daemon.client() as client:
        with pytest.raises(TemplateFailedError, match="does not exist"):
            client.call("snapshot", lease=token, template="ready")
        client.call("ping")


def test_what_a_client_owns_does_not_run_with_the_daemons_rights() -> None:
    config = CONFIG.replace("allow = true", 'allow = true\nrights = "owner"\nowner = "app"')
    trap = """
        CREATE FUNCTION public.hashtextextended(text, int) RETURNS bigint LANGUAGE plpgsql AS
            $$ BEGIN ALTER ROLE app SUPERUSER; RETURN 0; END $$;
        CREATE SCHEMA evil;
        CREATE FUNCTION evil.pg_relation_size(oid) RETURNS bigint LANGUAGE plpgsql AS
            $$ BEGIN ALTER ROLE app SUPERUSER; RETURN 0; END $$;
        CREATE TABLE t AS SELECT 3 AS v;
        CREATE UNLOGGED TABLE u AS SELECT 4 AS v;
        ALTER DATABASE {database} SET search_path = evil, pg_catalog, public;
    """
    with running_daemon(config, files=SQL) as daemon, daemon.client() as client:
        with client.define("content") as definition:
            run(definition.url, trap.replace("{database}", definition.database))
        with client.lease(definition.template, timeout=30) as lease:
            superuser = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = 'app'"
            assert value(lease.url, superuser) is False


# The command line -----------------------------------------------------------------------------


def command(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    name, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "clonepool", name, "--socket", str(daemon.socket), *rest],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_define_runs_its_command_once(daemon: Daemon) -> None:
    fill = (
        sys.executable,
        "-c",
        "import os; print('filling', os.environ['PGDATABASE'])",
    )
    failed = command(daemon, "define", "abc", "--name", "app", "--", "sh", "-c", "exit 3")
    assert (failed.returncode, failed.stdout) == (3, "")
    done = command(daemon, "define", "abc", "--name", "app", "--", *fill)
    assert done.returncode == 0, done.stderr
    assert "filling cp_main_app_" in done.stderr
    again = command(daemon, "define", "abc", "--name", "app", "--", "false")
    assert again.stdout == done.stdout
    assert leased(daemon, done.stdout.strip(), "SELECT 1") == 1
    missing = command(daemon, "define", "xyz", "--", "no-such-program")
    assert missing.returncode == 127
    assert nothing_is_left(daemon)


def test_snapshot_takes_the_token_of_a_lease(daemon: Daemon) -> None:
    with daemon.client() as client, client.lease("shop", timeout=30) as lease:
        run(lease.url, "UPDATE t SET v = 7")
        done = command(daemon, "snapshot", lease.token, "ready")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("ready: made as ")
    assert leased(daemon, "ready") == 7
