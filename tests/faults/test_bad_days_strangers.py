"""Others drop or rename the pool's databases: this is noticed, and clones are replaced."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from support.daemons import eventually, free_port, running_daemon
from support.outages import (
    ExternalServer,
    assert_recovers,
    is_whole,
    logged,
    metric,
    running_external_server,
    template,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.daemons import Daemon

LOST = 'clonepool_clones_lost_total{template="blog"}'
NOTICE_SECONDS = 15.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server() as running:
        yield running


def remove(postgres: ExternalServer, name: str, how: str) -> None:
    """Drop a database, or rename it to one of a person's own."""
    if how == "dropped":
        postgres.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    else:
        postgres.execute(f'ALTER DATABASE "{name}" RENAME TO "saved_{name[3:40]}"')


def saved(postgres: ExternalServer, name: str) -> set[str]:
    return postgres.databases(f"saved\\_{name[3:40]}")


def told(daemon: Daemon, count: int) -> bool:
    return len(logged(daemon, "clone.lost")) >= count


@pytest.mark.parametrize("how", ["dropped", "renamed"])
def test_a_generation_that_somebody_removed_is_built_again(
    postgres: ExternalServer, how: str
) -> None:
    config = postgres.config(f"gen{how[:2]}") + template(min_ready=2, max_clones=8)
    with running_daemon(config) as daemon, daemon.client() as client:
        eventually(lambda: is_whole(daemon))
        (name,) = postgres.databases(f"cp\\_gen{how[:2]}\\_%\\_t0\\_%")
        postgres.execute(f'ALTER DATABASE "{name}" WITH IS_TEMPLATE false')
        remove(postgres, name, how)
        client.lease("blog", timeout=0).release()  # ready clones are as good as before
        eventually(lambda: bool(logged(daemon, "template.lost")), NOTICE_SECONDS)
        assert_recovers(daemon)
        eventually(daemon.at_rest, 10)
        assert len(logged(daemon, "template.lost")) == 1
        assert len(logged(daemon, "template.built")) == 2
        assert len(logged(daemon, "clone.create_failed")) <= 1
        assert logged(daemon, "template.build_failed") == []
        assert daemon.stop() == 0
        daemon.start()
        with daemon.client() as again:
            again.lease("blog", timeout=20).release()
        assert bool(saved(postgres, name)) is (how == "renamed")


def test_ready_clones_that_somebody_removed_are_replaced_and_not_granted(
    postgres: ExternalServer,
) -> None:
    http = free_port()
    config = postgres.config("ready", http=http) + template(min_ready=3, max_clones=8)
    with running_daemon(config) as daemon:
        eventually(daemon.at_rest)
        dropped, renamed, *others = sorted(postgres.databases("cp\\_ready\\_%\\_c%"))
        remove(postgres, dropped, "dropped")
        remove(postgres, renamed, "renamed")
        with daemon.client() as client:  # somebody connects: the pulse begins
            eventually(partial(told, daemon, 2), NOTICE_SECONDS)
            eventually(lambda: is_whole(daemon), 5)
            held = [client.lease("blog", timeout=5) for _ in range(6)]
            granted = {lease.database for lease in held}
            assert not granted & {dropped, renamed}
            assert set(others) <= granted
            for lease in held:
                lease.release()
            assert_recovers(daemon)
        assert metric(http, LOST) == 2.0
        assert [entry["clone"] for entry in logged(daemon, "clone.lost")] == [dropped, renamed]
        eventually(daemon.at_rest, 10)
        assert daemon.stop() == 0
        daemon.start()
        eventually(lambda: is_whole(daemon))
        assert saved(postgres, renamed)
        assert not saved(postgres, dropped)


def test_a_leased_clone_that_somebody_removed_is_told_once_and_let_go(
    postgres: ExternalServer,
) -> None:
    http = free_port()
    config = postgres.config("leased", http=http) + template(min_ready=2, max_clones=8)
    with running_daemon(config) as daemon, daemon.client() as client:
        dropped, renamed = (client.lease("blog", timeout=20) for _ in range(2))
        eventually(lambda: is_whole(daemon))
        for lost, lease, how in ((1, dropped, "dropped"), (2, renamed, "renamed")):
            remove(postgres, lease.database, how)
            eventually(partial(told, daemon, lost), NOTICE_SECONDS)
        assert [entry["clone"] for entry in logged(daemon, "clone.lost")] == [
            dropped.database,
            renamed.database,
        ]  # over two pulses
        assert metric(http, LOST) == 2.0
        assert daemon.pool()["leased"] == 2
        for lease in (dropped, renamed):
            assert lease.release(report=True) == []
        assert_recovers(daemon)
        eventually(daemon.at_rest, 10)
        assert saved(postgres, renamed.database)
        assert logged(daemon, "clone.drop_failed") == []
        assert logged(daemon, "clone.recycle_failed") == []
