"""A configured limit is reached: waiters are told which, and which leases have the clones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clonepool.errors import AcquireTimeoutError, PoolFullError
from support.daemons import eventually, running_daemon
from support.outages import (
    ExternalServer,
    assert_recovers,
    is_whole,
    logged,
    running_external_server,
    template,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def postgres() -> Iterator[ExternalServer]:
    with running_external_server() as running:
        yield running


def test_a_full_pool_without_ready_clones_names_the_leases(
    postgres: ExternalServer,
) -> None:
    config = postgres.config("taken") + template(min_ready=0, max_clones=2)
    with running_daemon(config) as daemon, daemon.client() as client:
        held = [client.lease("blog", timeout=20, label="somebody") for _ in range(2)]
        with pytest.raises(PoolFullError, match="2 of 2 are leased, 2 by somebody"):
            client.lease("blog", timeout=0.3)
        for lease in held:
            lease.release()
        assert_recovers(daemon)


def test_the_storage_budget_limits_the_clones_and_says_so(postgres: ExternalServer) -> None:
    config = postgres.config("budget", more="[pool]\nmax_storage_mib = 30\n")
    with running_daemon(config + template(min_ready=1, max_clones=20)) as daemon:
        eventually(lambda: is_whole(daemon))
        with daemon.client() as client:
            held = []
            for _ in range(3):
                eventually(lambda: daemon.pool()["ready"] == 1)
                held.append(client.lease("blog", timeout=0))
            for _ in range(3):
                with pytest.raises(AcquireTimeoutError, match="MiB of 30 MiB"):
                    client.lease("blog", timeout=0.3)
            assert daemon.pool()["limited_by"] == "storage"
            assert "raise pool.max_storage_mib" in daemon.pool()["last_error"]
            (largest,) = postgres.rows(
                "SELECT sum(pg_database_size(datname)) AS bytes FROM pg_database"
                " WHERE datname LIKE 'cp\\_budget%' AND NOT datistemplate"
            )
            assert largest["bytes"] < 33 * MIB
            for lease in held:
                lease.release()
            assert_recovers(daemon)
        assert len(logged(daemon, "clone.create_failed")) == 1
