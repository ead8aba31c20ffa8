"""Several daemons, and databases with similar names, on one server."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from clonepool.client import Client
from support.daemons import Daemon, clean_up, eventually, running_daemon
from support.outages import ExternalServer, logged, running_external_server, template
from support.queries import value
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server() as running:
        yield running


def test_the_second_daemon_of_an_instance_names_the_first_and_ends(
    postgres: ExternalServer, place: Path
) -> None:
    config = postgres.config("shared") + template(min_ready=1, max_clones=4)
    with running_daemon(config) as first:
        second = Daemon(place, config)
        assert second.spawn().wait(30) == 3
        said = second.log.read_text()
        assert "another daemon of instance shared uses this server: clonepool shared" in said
        assert first.process is not None
        assert f"pid={first.process.pid}" in said
        with first.client() as client:
            client.lease("blog", timeout=30).release()


def test_two_instances_share_a_server_and_touch_nothing_of_each_other(
    postgres: ExternalServer,
) -> None:
    limits = template(min_ready=2, max_clones=4)
    with running_daemon(postgres.config("one") + limits) as one:
        eventually(one.at_rest)
        with one.client() as client, running_daemon(postgres.config("two") + limits) as two:
            lease = client.lease("blog", timeout=30)
            eventually(lambda: one.pool()["ready"] == 2)
            mine = postgres.databases("cp\\_one\\_%")
            eventually(two.at_rest)
            two.stop(signal.SIGKILL)
            two.start()
            eventually(two.at_rest)
            assert two.stop() == 0
            assert postgres.databases("cp\\_one\\_%") == mine
            assert lease.release(report=True) == []


def test_a_database_with_our_prefix_and_a_wrong_checksum_is_reported_and_left(
    postgres: ExternalServer,
) -> None:
    forged = "cp_forged_blog_abcdefgh_c1_aaaaaaaa"
    postgres.execute(f"CREATE DATABASE {forged}")
    config = postgres.config("forged") + template(min_ready=1, max_clones=4)
    with running_daemon(config) as daemon:
        eventually(daemon.at_rest)
        for number in (signal.SIGKILL, signal.SIGTERM):
            daemon.stop(number)
            daemon.start()
            eventually(daemon.at_rest)
        assert [entry["database"] for entry in logged(daemon, "database.not_ours")] == [forged] * 3
    assert forged in postgres.databases()


SLOW = '[templates.slow]\nsql = ["slow.sql"]\nmin_ready = 1\nmax_clones = 3\n'
SLOWLY = "CREATE TABLE t AS SELECT 1 AS v; SELECT pg_sleep(1); INSERT INTO t VALUES (2);"


@contextmanager
def two_at_once(*configs: str) -> Iterator[list[Daemon]]:
    """Two daemons that start at the same moment and build the same template."""
    with open_directory() as first, open_directory() as second:
        daemons = [
            Daemon(place, text) for place, text in zip((first, second), configs, strict=True)
        ]
        try:
            for daemon in daemons:
                (daemon.directory / "slow.sql").write_text(SLOWLY)
                daemon.spawn()
            yield daemons
        finally:
            for daemon in daemons:
                clean_up(daemon)


def leased_sum(daemon: Daemon) -> object:
    client = Client(str(daemon.socket), reconnect=30)
    with client, client.lease("slow", timeout=30) as lease:
        return value(lease.url, "SELECT sum(v)::int FROM t")


def test_daemons_of_two_instances_build_at_once_and_each_has_a_whole_template(
    postgres: ExternalServer,
) -> None:
    with two_at_once(postgres.config("racea") + SLOW, postgres.config("raceb") + SLOW) as daemons:
        assert [leased_sum(daemon) for daemon in daemons] == [3, 3]
        for instance in ("racea", "raceb"):
            assert len(postgres.databases(f"cp\\_{instance}\\_slow\\_%\\_t0\\_%")) == 1
            assert not postgres.databases(f"cp\\_{instance}\\_slow\\_%\\_b%\\_%")


def test_of_two_daemons_of_one_instance_one_builds_and_its_successor_takes_over(
    postgres: ExternalServer,
) -> None:
    with two_at_once(postgres.config("racec") + SLOW, postgres.config("racec") + SLOW) as daemons:
        both = [daemon.process for daemon in daemons if daemon.process is not None]
        eventually(lambda: any(process.poll() is not None for process in both), 30)
        (winner,) = (daemon for daemon in daemons if daemon.process and not daemon.process.poll())
        (loser,) = (daemon for daemon in daemons if daemon is not winner)
        assert loser.process is not None
        assert loser.process.wait(10) == 3
        eventually(
            lambda: bool(postgres.databases("cp\\_racec\\_slow\\_%\\_b%\\_%")), what="it builds"
        )
        winner.stop(signal.SIGKILL)
        loser.spawn()
        assert leased_sum(loser) == 3
        assert len(postgres.databases("cp\\_racec\\_slow\\_%\\_t0\\_%")) == 1
        assert not postgres.databases("cp\\_racec\\_slow\\_%\\_b%\\_%")
