"""How clones are copied and dropped, seen from outside."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from clonepool.errors import ShuttingDownError
from support import binaries
from support.daemons import CONFIG, Daemon, clean_up, eventually, free_port, running_daemon
from support.outages import get, logged, metric
from support.queries import clones_of
from support.servers import ROOT, open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILDING_SECONDS = 4.0
CANNOT_START = 2
SLOW = """
[templates.slow]
sql = ["slow.sql"]
min_ready = 0
"""
BLOG = f"""
[http]
listen = ""
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 2
max_clones = {{most}}
recycle = "recreate"
"""


def has_chosen(daemon: Daemon) -> bool:
    """Say whether a strategy is chosen, after taking and giving back a clone if not."""
    if daemon.pool()["copy"] == "measuring":
        with daemon.client() as client:
            client.lease("blog", timeout=30).release()
    return bool(daemon.pool()["copy"] != "measuring")


def test_the_strategy_is_measured_and_then_shown_everywhere() -> None:
    http = free_port()
    config = CONFIG.replace('listen = ""', f'listen = "127.0.0.1:{http}"')
    with running_daemon(config + 'recycle = "recreate"\n') as daemon:
        eventually(lambda: has_chosen(daemon), 60)
        chosen = daemon.pool()["copy"]
        (told,) = logged(daemon, "copy.strategy_chosen")
        assert (told["template"], told["strategy"]) == ("blog", chosen)
        labels = f'strategy="{chosen}",template="blog"'
        assert metric(http, f"clonepool_copy_strategy{{{labels}}}") == 1.0
        samples = [
            float(line.rpartition(" ")[2])
            for line in get(http, "/metrics")[1].splitlines()
            if line.startswith("clonepool_copy_strategy{")
        ]
        assert len(samples) == 3
        assert sum(samples) == 1.0


def test_a_strategy_that_is_named_is_used_from_the_first_clone() -> None:
    with running_daemon(CONFIG + 'copy = "wal_log"\n') as daemon:
        assert daemon.pool()["copy"] == "wal_log"
        eventually(daemon.at_rest)
        assert not logged(daemon, "copy.strategy_chosen")


def test_a_strategy_that_the_server_cannot_do_ends_the_start_with_a_sentence() -> None:
    oldest, directory = list(binaries.available().items())[-1]
    config = CONFIG + f'copy = "clone"\n[embedded]\nbinaries = "{directory}"\n'
    with open_directory() as directory:
        daemon = Daemon(directory, config)
        try:
            assert daemon.spawn().wait(30) == CANNOT_START
        finally:
            clean_up(daemon)
        said = daemon.log.read_text()
    assert f'templates.blog.copy = "clone": PostgreSQL {oldest}' in said
    assert 'set copy = "auto"' in said


@contextmanager
def somebody_waiting(daemon: Daemon, template: str) -> Iterator[None]:
    """Have a test wait for a clone of a template that takes long to build."""

    def wait() -> None:
        with suppress(ShuttingDownError), daemon.client() as client:
            client.lease(template, timeout=60).release()

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: bool(daemon.pool(template)["waiting"]))
    yield
    thread.join(60)


@contextmanager
def daemon_that_builds(most: int) -> Iterator[Daemon]:
    """Run a daemon whose second template is still being built."""
    slow = f"SELECT pg_sleep({BUILDING_SECONDS})"
    with running_daemon(BLOG.format(most=most) + SLOW, files={"slow.sql": slow}) as daemon:
        eventually(lambda: daemon.pool()["ready"] == 2)
        assert daemon.pool("slow")["phase"] == "building"
        yield daemon


def is_still_waited_for(daemon: Daemon) -> bool:
    pool: dict[str, Any] = daemon.pool("slow")
    return bool(pool["waiting"])


def test_a_drop_waits_while_a_test_does_and_is_done_afterwards() -> None:
    with daemon_that_builds(most=9) as daemon, daemon.client() as client:
        with somebody_waiting(daemon, "slow"):
            lease = client.lease("blog")
            lease.release()
            eventually(lambda: daemon.pool()["dropping"] == 1)
            eventually(lambda: daemon.pool()["ready"] == 2)
            time.sleep(0.5)  # sleeps: it must not be dropped in that time
            put_off = daemon.pool()["dropping"]
            assert is_still_waited_for(daemon)
        assert put_off == 1
        eventually(daemon.at_rest, 3)
        assert lease.database not in clones_of(daemon)


def test_a_drop_waits_for_nothing_while_only_a_template_is_built() -> None:
    with daemon_that_builds(most=9) as daemon, daemon.client() as client:
        client.lease("blog").release()
        eventually(daemon.at_rest, 2)
        assert daemon.pool("slow")["phase"] == "building"


def test_where_the_limit_is_reached_a_drop_is_done_at_once() -> None:
    with daemon_that_builds(most=2) as daemon, daemon.client() as client:
        with somebody_waiting(daemon, "slow"):
            held = [client.lease("blog"), client.lease("blog")]
            held[0].release()
            lease = client.lease("blog", timeout=2)
            still = is_still_waited_for(daemon)
        assert still, "the drop did not wait for the other template's test"
        lease.release()


def test_a_stop_does_not_wait_for_drops_that_were_put_off() -> None:
    with daemon_that_builds(most=9) as daemon:
        with daemon.client() as client, somebody_waiting(daemon, "slow"):
            client.lease("blog").release()
            eventually(lambda: daemon.pool()["dropping"] == 1)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < BUILDING_SECONDS
        assert not daemon.events("daemon.left_clones")
