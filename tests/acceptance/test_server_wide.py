"""Server-wide changes of a lease do not affect later leases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support import binaries
from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import ask, connected, run, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.client import Client

FEW = CONFIG.replace("min_ready = 3", "min_ready = 2").replace("max_clones = 12", "max_clones = 4")
COUNT = "SELECT count(*) FROM blog.tb_user"
STATE = """\
SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
    SELECT concat_ws(' ', rolname, rolsuper, rolcanlogin, rolpassword, rolconnlimit) AS line
      FROM pg_authid WHERE rolname !~ '^cp_'
    UNION ALL SELECT concat_ws(' ', roleid::regrole, m.member::regrole, admin_option)
      FROM pg_auth_members m WHERE m.member::regrole::text !~ '^cp_'
    UNION ALL SELECT concat_ws(' ', setrole::regrole, setdatabase, setconfig)
      FROM pg_db_role_setting
    UNION ALL SELECT concat_ws(' ', datname, datdba::regrole, datallowconn, datistemplate,
                               datconnlimit,
                               (SELECT array_agg(i::text ORDER BY i::text) FROM
                                  unnest(coalesce(datacl, acldefault('d', datdba))) AS i))
      FROM pg_database WHERE datname !~ '^cp_'
    UNION ALL SELECT concat_ws(' ', spcname, spcacl) FROM pg_tablespace
    UNION ALL SELECT concat_ws(' ', parname, paracl) FROM pg_parameter_acl
    UNION ALL SELECT slot_name FROM pg_replication_slots
    UNION ALL SELECT roname FROM pg_replication_origin) AS lines
"""


@pytest.fixture(scope="module")
def wide() -> Iterator[Daemon]:
    with running_daemon(FEW) as running:
        eventually(running.at_rest)
        yield running


CHANGES = {
    "role": "CREATE ROLE x",
    "role that may log in": "CREATE ROLE x LOGIN PASSWORD 'x' CONNECTION LIMIT 3",
    "role with privileges": "CREATE ROLE x; GRANT SELECT ON ALL TABLES IN SCHEMA blog TO x",
    "role that owns": "CREATE ROLE x; GRANT CREATE ON SCHEMA blog TO x; SET ROLE x;"
    " CREATE TABLE blog.theirs (a int); RESET ROLE",
    "role with settings": "CREATE ROLE x; ALTER ROLE x SET work_mem = '5MB'",
    "memberships": "CREATE ROLE x; CREATE ROLE y; GRANT x TO y WITH ADMIN OPTION;"
    " GRANT y TO postgres",
    "membership of ours": "GRANT pg_monitor TO postgres",
    "settings of all": "ALTER ROLE ALL SET default_transaction_read_only = on",
    "settings of the login": "ALTER ROLE CURRENT_USER SET search_path = 'nowhere'",
    "settings of the owner": "ALTER ROLE postgres SET search_path = 'nowhere'",
    "password of the login": "ALTER ROLE CURRENT_USER PASSWORD 'mine'",
    "login locked": "ALTER ROLE CURRENT_USER NOLOGIN",
    "login outdated": "ALTER ROLE CURRENT_USER VALID UNTIL '2000-01-01'",
    "login weakened": "ALTER ROLE CURRENT_USER NOSUPERUSER",
    "login in a group": "GRANT pg_monitor TO CURRENT_USER",
    "password of the owner": "ALTER ROLE postgres LOGIN PASSWORD 'postgres'",
    "the daemon's own role": "ALTER ROLE clonepool NOLOGIN PASSWORD 'mine' CONNECTION LIMIT 0",
    "the daemon's own role renamed": "ALTER ROLE clonepool RENAME TO other",
    "privileges on a parameter": "CREATE ROLE x; GRANT SET ON PARAMETER log_statement TO x",
    "privileges on another database": "CREATE ROLE x; GRANT CREATE ON DATABASE postgres TO x",
    "flags of another database": "ALTER DATABASE postgres CONNECTION LIMIT 3",
    "settings of another database": "ALTER DATABASE postgres SET work_mem = '5MB'",
    "owner of another database": "CREATE ROLE x; ALTER DATABASE postgres OWNER TO x",
    "name of another database": "ALTER DATABASE template1 IS_TEMPLATE false",
    "origin": "SELECT pg_replication_origin_create('mine')",
    "prepared": "CREATE ROLE x; CREATE ROLE y ROLE x IN ROLE pg_monitor",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_lease_changes_in_the_server_is_undone_before_a_report_of_it_is_answered(
    wide: Daemon, change: str
) -> None:
    before = ask(wide, STATE)
    with wide.client() as client:
        for _ in range(2):  # twice in a row: what is left would be in the way
            lease = client.lease("blog", timeout=30)
            run(lease.url, CHANGES[change])
            leaked = lease.release(report=True)
            assert leaked is not None
            assert [each for each in leaked if "undone" not in each["what"]] == []
        lease = client.lease("blog", timeout=30)
        assert value(lease.url, COUNT) == 40
        assert value(lease.url, "SHOW default_transaction_read_only") == "off"
        lease.release()
        eventually(lambda: ask(wide, STATE) == before)
        every_clone_can_be_used(client)


def every_clone_can_be_used(client: Client) -> None:
    """Lease as many as there are at once: each lets its holder in, as what it should be."""
    leases = [client.lease("blog", timeout=30) for _ in range(4)]
    try:
        for lease in leases:
            assert value(lease.url, COUNT) == 40
            assert value(lease.url, "SHOW search_path") == '"$user", public'
            superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
            assert value(lease.url, superuser) is True
    finally:
        for lease in leases:
            lease.release()


@pytest.mark.parametrize("statement", ["CREATE DATABASE mine", "CREATE DATABASE mine TEMPLATE {0}"])
def test_databases_that_a_lease_made_go_with_it(wide: Daemon, statement: str) -> None:
    with wide.client() as client:
        for _ in range(2):
            lease = client.lease("blog", timeout=30)
            source = "template1"
            run(lease.url, statement.format(source))
            url = lease.url.replace(f"/{lease.database}?", "/mine?")
            run(url, "CREATE TABLE t ()")
            with connected(url) as ask_it:
                pid = ask_it("SELECT pg_backend_pid()")
                session, made = lease.release(report=True) or []
            assert session["pid"] == pid
            assert made["what"] == "database mine was made; undone"


def test_what_another_lease_may_have_made_stays_until_that_has_ended(wide: Daemon) -> None:
    there = "SELECT count(*) FROM pg_roles WHERE rolname IN ('mine', 'used')"
    with wide.client() as client:
        first, second = (client.lease("blog", timeout=30) for _ in range(2))
        run(second.url, "CREATE ROLE mine")
        run(second.url, "CREATE DATABASE theirs")
        run(first.url, "CREATE ROLE used; GRANT SELECT ON blog.tb_user TO used")
        told = [each["what"] for each in first.release(report=True) or []]
        # What only the first one's clone holds anything of was the first one's.
        assert told == ["role used was made; undone"]
        assert ask(wide, there) == 1
        assert value(second.url, "SELECT count(*) FROM pg_database WHERE datname = 'theirs'") == 1
        told = [each["what"] for each in second.release(report=True) or []]
        assert sorted(told) == ["database theirs was made; undone", "role mine was made; undone"]
        assert ask(wide, there) == 0


def test_what_is_undone_is_logged_and_counted(wide: Daemon) -> None:
    with wide.client() as client, client.lease("blog", timeout=30) as lease:
        run(lease.url, "CREATE ROLE counted")
    eventually(lambda: any("counted" in line for line in wide.events("server.changed_by_lease")))


def test_roles_that_a_templates_files_make_are_no_leases() -> None:
    files = {"a.sql": "CREATE ROLE reader; CREATE TABLE t (); GRANT SELECT ON t TO reader;"}
    config = FEW.split("[templates.blog]")[0] + '[templates.blog]\nsql = ["a.sql"]\nmin_ready = 2\n'
    with running_daemon(config, files=files) as daemon:
        with daemon.client() as client:
            for _ in range(3):
                with client.lease("blog", timeout=30) as lease:
                    run(lease.url, "SET ROLE reader; SELECT * FROM t")
        (daemon.directory / "a.sql").write_text("CREATE TABLE t (); GRANT SELECT ON t TO reader;")
        daemon.stop()
        daemon.start()
        with daemon.client() as client:
            for _ in range(3):
                lease = client.lease("blog", timeout=30)
                run(lease.url, "CREATE ROLE other; SET ROLE reader; SELECT * FROM t")
                lease.release(report=True)  # the next one makes a role of that name


def test_what_a_killed_daemon_left_goes_after_the_next_ones_first_lease() -> None:
    left = "SELECT count(*) FROM pg_roles WHERE rolname = 'mine'"
    with running_daemon(FEW) as daemon:
        with daemon.client() as client:
            lease = client.lease("blog", timeout=30)
            run(lease.url, "CREATE ROLE mine")
            run(lease.url, "CREATE DATABASE theirs")
            daemon.stop(9)
        daemon.start()
        eventually(daemon.at_rest)
        with daemon.client() as client, client.lease("blog", timeout=30):
            pass
        eventually(lambda: ask(daemon, left) == 0)
        database = "SELECT count(*) FROM pg_database WHERE datname = 'theirs'"
        eventually(lambda: ask(daemon, database) == 0)


def test_what_alter_system_set_where_it_cannot_be_refused_is_reset() -> None:
    older = [major for major in binaries.available() if major < 17]
    if not older:
        pytest.skip("no PostgreSQL before 17 here")
    with (
        running_daemon(
            f'[embedded]\nbinaries = "{binaries.available()[older[0]]}"\n' + FEW
        ) as daemon,
        daemon.client() as client,
    ):
        lease = client.lease("blog", timeout=30)
        run(lease.url, "ALTER SYSTEM SET default_transaction_read_only = on")
        run(lease.url, "SELECT pg_reload_conf()")
        assert [each["what"] for each in lease.release(report=True) or []] == [
            "setting of the server default_transaction_read_only was made; undone"
        ]
        with client.lease("blog", timeout=30) as later:
            eventually(lambda: value(later.url, "SHOW default_transaction_read_only") == "off")


def test_a_superuser_that_a_lease_made_is_not_taken_for_a_builds(wide: Daemon) -> None:
    eventually(wide.at_rest)
    with wide.client() as client:
        lease = client.lease("blog", timeout=20)
        run(lease.url, "CREATE ROLE usurper SUPERUSER LOGIN PASSWORD 'x'")
        client.call("build", template="blog", anew=True)
        assert any("usurper" in leaked["what"] for leaked in lease.release(report=True) or [])
        with client.lease("blog", timeout=20) as later:
            found = "SELECT count(*) FROM pg_roles WHERE rolname = 'usurper'"
            assert value(later.url, found) == 0


def test_a_suite_that_makes_the_same_role_in_every_test_never_meets_it(wide: Daemon) -> None:
    with wide.client() as client:
        lease = client.lease("blog", timeout=60)
        run(lease.url, "CREATE ROLE again")
        assert lease.release(report=True), "then it is known that these leases change the server"
        lease = client.lease("blog", timeout=60)
        for _ in range(12):
            run(lease.url, "CREATE ROLE again")  # fails if there is one
            lease.exchange()
        lease.release(report=True)
        with client.lease("blog", timeout=60) as last:
            assert value(last.url, "SELECT count(*) FROM pg_roles WHERE rolname = 'again'") == 0


def test_a_session_that_a_lease_has_in_another_database_ends_with_it(wide: Daemon) -> None:
    with wide.client() as client:
        lease = client.lease("blog", timeout=60)
        elsewhere = lease.url.replace(f"/{lease.database}?", "/postgres?")
        with connected(elsewhere) as ask_it:
            assert ask_it("SELECT current_database()") == "postgres"
            pid = ask_it("SELECT pg_backend_pid()")
            left = lease.release(report=True)
            assert pid in [session["pid"] for session in left or []]
            eventually(
                lambda: ask(wide, f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == 0
            )
