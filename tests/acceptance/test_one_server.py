"""Several daemons, and databases that only look like ours, on one server."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support.daemons import Daemon, eventually, running_daemon
from support.outages import Victim, logged, running_victim, template

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with running_victim() as running:
        yield running


def test_the_second_daemon_of_an_instance_says_who_has_it_and_ends(
    victim: Victim, place: Path
) -> None:
    config = victim.config("shared") + template(min_ready=1, max_clones=4)
    with running_daemon(config) as first:
        second = Daemon(place, config)
        assert second.spawn().wait(30) == 3
        said = second.log.read_text()
        assert "another daemon of instance shared uses this server: clonepool shared" in said
        assert first.process is not None
        assert f"pid={first.process.pid}" in said
        with first.client() as client:
            client.lease("blog", timeout=30).release()


def test_two_instances_share_a_server_and_touch_nothing_of_each_other(victim: Victim) -> None:
    limits = template(min_ready=2, max_clones=4)
    with running_daemon(victim.config("one") + limits) as one:
        eventually(one.at_rest)
        with one.client() as client, running_daemon(victim.config("two") + limits) as two:
            lease = client.lease("blog", timeout=30)
            eventually(lambda: one.pool()["ready"] == 2)
            mine = victim.databases("cp\\_one\\_%")
            eventually(two.at_rest)
            two.stop(signal.SIGKILL)
            two.start()
            eventually(two.at_rest)
            assert two.stop() == 0
            assert victim.databases("cp\\_one\\_%") == mine
            assert lease.release() == []


def test_a_database_with_our_prefix_and_a_wrong_checksum_is_reported_and_left(
    victim: Victim,
) -> None:
    forged = "cp_forged_blog_abcdefgh_c1_aaaaaaaa"
    victim.execute(f"CREATE DATABASE {forged}")
    config = victim.config("forged") + template(min_ready=1, max_clones=4)
    with running_daemon(config) as daemon:
        eventually(daemon.at_rest)
        for number in (signal.SIGKILL, signal.SIGTERM):
            daemon.stop(number)
            daemon.start()
            eventually(daemon.at_rest)
        assert [entry["database"] for entry in logged(daemon, "database.not_ours")] == [forged] * 3
    assert forged in victim.databases()
