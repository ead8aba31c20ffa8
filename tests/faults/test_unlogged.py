"""A crash of the server empties unlogged tables, in clones and in generations alike."""

from __future__ import annotations

import os
import signal

from support.daemons import CONFIG, eventually, running_daemon
from support.queries import ask, value
from support.servers import ROOT

CONFIG = CONFIG.replace(f"{ROOT}/examples/blog/*.sql", "unlogged.sql")
TABLE = """\
CREATE UNLOGGED TABLE cache (id int PRIMARY KEY, what text);
INSERT INTO cache SELECT n, 'row ' || n FROM generate_series(1, 100) n;
"""
COUNT = "SELECT count(*) FROM cache"


def test_no_clone_is_granted_whose_unlogged_tables_a_crash_has_emptied() -> None:
    with running_daemon(CONFIG, files={"unlogged.sql": TABLE}) as daemon:
        eventually(daemon.at_rest)
        with daemon.client() as client:
            held = client.lease("blog", timeout=30)
            assert value(held.url, COUNT) == 100
            backend = ask(
                daemon, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
            )
            os.kill(int(str(backend)), signal.SIGKILL)
            eventually(lambda: bool(daemon.events("server.found")), what="the server came back")
            for _ in range(5):
                lease = client.lease("blog", timeout=30)
                assert value(lease.url, COUNT) == 100
                lease.release()
        assert daemon.events("template.damaged")
        eventually(daemon.at_rest)
