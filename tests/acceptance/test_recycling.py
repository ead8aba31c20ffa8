"""What happens to returned clones, as clients see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.daemons import CONFIG, Daemon, eventually, running_daemon
from support.queries import ask, clones_of, tell, value

if TYPE_CHECKING:
    from collections.abc import Iterator

USERS = 40
COUNT = "SELECT count(*) FROM blog.tb_user"
EMPTIED = "WITH gone AS (DELETE FROM blog.tb_post_tag RETURNING 1) SELECT count(*) FROM gone"
TAGGED = "SELECT count(*) FROM blog.tb_post_tag"
REFERENCES = "SELECT count(*) FROM pg_database WHERE datname ~ '_r[0-9a-z]+_[a-z2-7]{8}$'"
ONE = CONFIG.replace("min_ready = 3\nmax_clones = 12", "min_ready = 1\nmax_clones = 1")
AUTO = ONE + 'recycle = "auto"\nverify_every = 1\n'


@pytest.fixture(scope="module")
def one() -> Iterator[Daemon]:
    """Return a daemon with a single clone, which every lease gets."""
    with running_daemon(AUTO) as running:
        yield running


def recycles(daemon: Daemon, script: str) -> tuple[str, str]:
    """Lease, change something, release; return the clone then and the next."""
    with daemon.client() as client:
        first = client.lease("blog", timeout=30)
        value(first.url, script)
        first.release()
        second = client.lease("blog", timeout=30)
        assert value(second.url, COUNT) == USERS
        second.release()
    return first.database, second.database


def test_a_clone_whose_rows_were_changed_is_rewound_and_granted_again(one: Daemon) -> None:
    with one.client() as client, client.lease("blog", timeout=30) as lease:
        tagged = value(lease.url, TAGGED)
    assert recycles(one, EMPTIED)[0] == lease.database
    with one.client() as client, client.lease("blog", timeout=30) as again:
        assert (again.database, value(again.url, TAGGED)) == (lease.database, tagged)
        assert value(again.url, "SELECT nextval('blog.tb_user_id_seq')") == USERS + 1
    with one.client() as client, client.lease("blog", timeout=30) as again:
        assert value(again.url, "SELECT nextval('blog.tb_user_id_seq')") == USERS + 1
    assert not one.events("clone.proof_failed")


def test_a_clone_whose_schema_was_changed_is_made_anew(one: Daemon) -> None:
    changed = "SELECT 1 FROM (SELECT lo_from_bytea(0, 'abc')) AS made"
    before, after = recycles(one, changed)
    assert before != after
    eventually(lambda: clones_of(one) == {after})


def test_a_request_for_a_fresh_clone_gets_one_that_was_never_leased(one: Daemon) -> None:
    with one.client() as client:
        used = client.lease("blog", timeout=30)
        used.release()
        eventually(one.at_rest)
        with client.lease("blog", timeout=30, fresh=True) as fresh:
            assert fresh.database != used.database


def test_a_lease_with_a_ttl_leaves_nothing_in_the_comment_of_a_rewound_clone(one: Daemon) -> None:
    with one.client() as client:
        lease = client.lease("blog", timeout=30, ttl=600)
        lease.release()
    eventually(one.at_rest)
    one.stop(9)
    one.start()
    with one.client() as client:
        assert client.call("leases") == []


def test_clones_are_rewound_by_the_measure_of_the_generation_they_are_of() -> None:
    """A generation that is built anew has the old name and other OIDs."""
    with running_daemon(AUTO.replace("max_clones = 1", "max_clones = 2")) as daemon:
        eventually(daemon.at_rest)
        with daemon.client() as client:
            old = client.lease("blog", timeout=30)
            name = str(ask(daemon, "SELECT datname FROM pg_database WHERE datname ~ '_t0_'"))
            tell(daemon, f"ALTER DATABASE {name} IS_TEMPLATE false")
            tell(daemon, f"DROP DATABASE {name}")
            eventually(lambda: len(daemon.events("template.built")) == 2)
            value(old.url, EMPTIED)
            old.release()
            eventually(daemon.at_rest)
            for _ in range(4):
                held = [client.lease("blog", timeout=30) for _ in range(2)]
                for lease in held:
                    assert value(lease.url, TAGGED) != 0
                    value(lease.url, EMPTIED)
                    lease.release()
                eventually(daemon.at_rest)
            assert {lease.database for lease in held} == clones_of(daemon)
        assert not daemon.events("clone.proof_failed")


def test_a_reset_rewinds_the_clone_where_it_is_or_gives_another(one: Daemon) -> None:
    with one.client() as client, client.lease("blog", timeout=30) as lease:
        first, tagged = lease.url, value(lease.url, TAGGED)
        value(lease.url, EMPTIED)
        lease.reset(timeout=30)
        assert (lease.url, value(lease.url, TAGGED)) == (first, tagged)
        value(lease.url, "SELECT lo_from_bytea(0, 'abc')")
        lease.reset(timeout=30)
        assert lease.url != first
        assert value(lease.url, TAGGED) == tagged


def test_a_session_that_stays_on_the_clone_is_no_stray_and_leaves_with_it() -> None:
    with running_daemon(AUTO) as daemon:
        for _ in range(3):
            before, after = recycles(daemon, EMPTIED)
            assert before == after
        with daemon.client() as client:
            assert client.lease("blog", timeout=30).release(report=True) == []
            eventually(daemon.at_rest)
            lease = client.lease("blog", timeout=30)
            others = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert value(lease.url, others) == 1
            lease.release()
            with client.lease("blog", timeout=30) as again:
                assert again.database == lease.database  # rewound by a new session
                assert value(again.url, COUNT) == USERS
        assert not daemon.events("clone.proof_failed")
        assert not daemon.events("clone.sessions_leaked")


OTHERS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def test_the_session_that_stays_makes_way_for_exclusive_access() -> None:
    with running_daemon(AUTO) as daemon, daemon.client() as client:
        for deed in ("CREATE DATABASE copied TEMPLATE {}", "ALTER DATABASE {} RENAME TO renamed"):
            recycles(daemon, EMPTIED)
            eventually(daemon.at_rest)
            lease = client.lease("blog", timeout=30)
            assert value(lease.url, OTHERS) == 1
            tell(daemon, deed.format(lease.database))
            lease.release()
        tell(daemon, "DROP DATABASE copied")
        # What was the lease's clone has no name of ours any more, and goes as a lease's database.
        renamed = "SELECT count(*) FROM pg_database WHERE datname = 'renamed'"
        eventually(lambda: ask(daemon, renamed) == 0)
        recycles(daemon, EMPTIED)
        eventually(daemon.at_rest)
        lease = client.lease("blog", timeout=30)
        assert value(lease.url, OTHERS) == 1
        tell(daemon, f"DROP DATABASE {lease.database}")
        lease.release()
        with client.lease("blog", timeout=30) as again:
            assert value(again.url, COUNT) == USERS


def test_told_to_no_session_stays_on_a_clone() -> None:
    with running_daemon(AUTO + 'stay_connected = "never"\n') as daemon:
        before, after = recycles(daemon, EMPTIED)
        assert before == after
        eventually(daemon.at_rest)
        with daemon.client() as client, client.lease("blog", timeout=30) as lease:
            assert value(lease.url, OTHERS) == 0


def test_told_to_a_clone_is_made_anew() -> None:
    with running_daemon(ONE + 'recycle = "recreate"\n') as daemon:
        before, after = recycles(daemon, COUNT)
        assert before != after


def test_a_large_table_is_put_back_from_a_reference_that_the_next_start_sweeps() -> None:
    large = (
        "CREATE TABLE large AS SELECT n, repeat('x', 100) AS v FROM generate_series(1, 9000) n;"
        " ALTER TABLE large ADD PRIMARY KEY (n)"
    )
    config = (
        '[http]\nlisten = ""\n[templates.blog]\nsql = ["large.sql"]\n'
        "min_ready = 1\nmax_clones = 1\nverify_every = 1\n"
    )
    changed = "WITH gone AS (DELETE FROM large WHERE n % 3000 = 7 RETURNING 1) SELECT 1"
    names = set()
    with running_daemon(config, files={"large.sql": large}) as daemon:
        for _ in range(3):
            with daemon.client() as client, client.lease("blog", timeout=30) as lease:
                assert value(lease.url, "SELECT count(*) FROM large") == 9000
                value(lease.url, changed)
                names.add(lease.database)
        eventually(daemon.at_rest)
        assert len(names) == 1
        assert not daemon.events("clone.proof_failed")
        assert ask(daemon, REFERENCES) == 1
        daemon.stop(9)
        daemon.start()
        eventually(daemon.at_rest)
        assert ask(daemon, REFERENCES) == 0
