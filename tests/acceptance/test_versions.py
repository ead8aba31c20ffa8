"""A daemon on each PostgreSQL version: rewinds if the WAL can be read, otherwise recreates."""

from __future__ import annotations

import pytest

from support import binaries
from support.daemons import CONFIG, running_daemon
from support.queries import value

COUNT = "SELECT count(*) FROM blog.tb_post_tag"
EMPTIED = "WITH gone AS (DELETE FROM blog.tb_post_tag RETURNING 1) SELECT count(*) FROM gone"
ONE = CONFIG.replace("min_ready = 3\nmax_clones = 12", "min_ready = 1\nmax_clones = 1")
VERSIONS = [pytest.param(major, id=f"postgresql-{major}") for major in binaries.available()]


@pytest.mark.smoke
@pytest.mark.parametrize("major", VERSIONS)
def test_the_next_lease_has_the_rows_of_the_template_on_any_version(major: int) -> None:
    settings = f'{ONE}[embedded]\nbinaries = "{binaries.available()[major]}"\n'
    with running_daemon(settings) as daemon, daemon.client() as client:
        first = client.lease("blog", timeout=60)
        before = value(first.url, COUNT)
        assert value(first.url, EMPTIED) == before
        first.release()
        second = client.lease("blog", timeout=60)
        assert value(second.url, COUNT) == before != 0
        assert (second.database == first.database) == (major in binaries.rewinding())
        second.release()
