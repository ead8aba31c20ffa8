"""Somebody drops or renames our databases behind the daemon's back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.daemons import Daemon, eventually
from support.queries import ask, clones_of, tell, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.client import Client

USERS = "SELECT count(*) FROM blog.tb_user"
GENERATION = "SELECT datname FROM pg_database WHERE datname LIKE 'cp\\_%' AND datistemplate"


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """Stay connected: an idle daemon does not look."""
    eventually(daemon.at_rest)
    with daemon.client() as connected:
        yield connected


def leased_names(client: Client, daemon: Daemon) -> set[str]:
    """Lease all that is ready and say which clones that were."""
    leases = [client.lease("blog", timeout=30) for _ in range(3)]
    for lease in leases:
        assert value(lease.url, USERS) == 40
        lease.release()
    eventually(daemon.at_rest)
    return {lease.database for lease in leases}


@pytest.mark.parametrize("how", ["DROP DATABASE {name}", "ALTER DATABASE {name} RENAME TO mine"])
def test_a_ready_clone_that_is_gone_is_replaced_and_not_granted(
    daemon: Daemon, client: Client, how: str
) -> None:
    victim = min(clones_of(daemon))
    tell(daemon, how.format(name=victim))
    eventually(lambda: bool(daemon.events("clone.lost")), 5)
    eventually(daemon.at_rest, 5)
    assert victim not in leased_names(client, daemon)
    assert len(daemon.events("clone.lost")) == 1
    renamed = "SELECT count(*)::int FROM pg_database WHERE datname = 'mine'"
    assert ask(daemon, renamed) == (1 if "RENAME" in how else 0)


def test_a_leased_clone_that_is_gone_is_reported_once_and_its_lease_still_ends(
    daemon: Daemon, client: Client
) -> None:
    lease = client.lease("blog", timeout=30)
    tell(daemon, f"DROP DATABASE {lease.database} WITH (FORCE)")
    eventually(lambda: bool(daemon.events("clone.lost")), 5)
    assert client.call("leases")[0]["database"] == lease.database
    assert lease.release() == []
    eventually(daemon.at_rest, 5)
    assert len(daemon.events("clone.lost")) == 1


@pytest.mark.parametrize("how", ["DROP DATABASE {name}", "ALTER DATABASE {name} RENAME TO mine"])
def test_a_template_that_is_gone_is_built_again_and_its_clones_stay_good(
    daemon: Daemon, client: Client, how: str
) -> None:
    lease = client.lease("blog", timeout=30)
    generation = str(ask(daemon, GENERATION))
    tell(daemon, f"ALTER DATABASE {generation} IS_TEMPLATE false")
    tell(daemon, how.format(name=generation))
    eventually(lambda: bool(daemon.events("template.lost")), 5)
    eventually(lambda: len(daemon.events("template.built")) == 2, 5)
    assert value(lease.url, USERS) == 40
    lease.release()
    eventually(daemon.at_rest, 5)
    leased_names(client, daemon)
    assert len(daemon.events("template.lost")) == 1
    renamed = "SELECT count(*)::int FROM pg_database WHERE datname = 'mine'"
    assert ask(daemon, renamed) == (1 if "RENAME" in how else 0)


def test_a_template_that_is_gone_is_noticed_by_whoever_clones_it(daemon: Daemon) -> None:
    """Nobody is connected, so nobody looks; the refill finds out."""
    eventually(daemon.at_rest)
    generation = str(ask(daemon, GENERATION))
    tell(daemon, f"ALTER DATABASE {generation} IS_TEMPLATE false")
    tell(daemon, f"DROP DATABASE {generation}")
    with daemon.client() as client:
        client.lease("blog").release()
    eventually(lambda: len(daemon.events("template.built")) == 2, 5)
    eventually(daemon.at_rest, 5)
    failed = [line for line in daemon.events("clone.create_failed") if "trouble.ended" not in line]
    assert len(failed) == 1
