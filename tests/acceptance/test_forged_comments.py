"""A lease owns its clone and can forge comments on it: the next daemon does not believe them."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from clonepool.config import EmbeddedSection
from clonepool.core.leases import token_digest
from clonepool.core.naming import Namer
from clonepool.postgres.embedded.cluster import boot_id
from clonepool.postgres.embedded.server import EmbeddedServer
from support.daemons import eventually
from support.queries import ask, clones_of, run, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.daemons import Daemon

YEARS = 1e9
FAR = {"at": time.time() + YEARS, "boot": boot_id(), "since_boot": YEARS}
PAST = {"at": 0.0, "boot": boot_id(), "since_boot": 0.0}
TOKEN = "a token of the lease's own"


def comment_of(daemon: Daemon, database: str) -> dict[str, Any]:
    text = ask(
        daemon,
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database"
        f" WHERE datname = '{database}'",
    )
    found: dict[str, Any] = json.loads(str(text))
    return found


def comment_sql(database: str, comment: dict[str, Any]) -> str:
    text = json.dumps(comment).replace("'", "''")
    return f"COMMENT ON DATABASE \"{database}\" IS '{text}'"


def killed_and_started(daemon: Daemon) -> Daemon:
    daemon.stop(signal.SIGKILL)
    return daemon.start()


def believed(daemon: Daemon) -> set[str]:
    """Return the clones that the daemon took over from the one before."""
    with daemon.client() as client:
        held = {lease["database"] for lease in client.call("leases")}
    told = ("clone.found_kept", "clone.adopted", "database.left")
    lines = [json.loads(line) for name in told for line in daemon.events(name)]
    return held | {line.get("clone") or line["database"] for line in lines}


def forged_lease(plain: dict[str, Any]) -> dict[str, Any]:
    return {
        **plain,
        "state": "leased",
        "token": token_digest(TOKEN),
        "label": "mine",
        "ttl": YEARS,
        "granted": PAST,
        "until": FAR,
        "written": PAST,
        "occasion": "",
        "proof": "0" * 32,
    }


def forged_keep(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "state": "kept", "label": "mine", "until": FAR, "proof": "0" * 32}


def nothing_forged(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "state": "kept", "label": "mine", "until": FAR}


@pytest.mark.parametrize("forge", [forged_lease, forged_keep, nothing_forged])
def test_a_lease_cannot_make_the_next_daemon_take_its_clone_for_leased_or_kept(
    daemon: Daemon, forge: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    with daemon.client() as client:
        held = client.lease("blog", timeout=30)
        forged = forge(comment_of(daemon, held.database))
        run(held.url, comment_sql(held.database, forged))
        assert comment_of(daemon, held.database) == forged
        killed_and_started(daemon)
    eventually(lambda: held.database not in clones_of(daemon))
    assert held.database not in believed(daemon)


@pytest.mark.parametrize("change", [{"until": FAR}, {"ttl": YEARS}, {"token": "sha256:0"}])
def test_a_lease_cannot_change_what_is_written_of_it(
    daemon: Daemon, change: dict[str, Any]
) -> None:
    with daemon.client() as client:
        held = client.lease("blog", timeout=30, ttl=600)
    told = comment_of(daemon, held.database)
    assert told["state"] == "leased"
    run(held.url, comment_sql(held.database, {**told, **change}))
    killed_and_started(daemon)
    eventually(lambda: held.database not in clones_of(daemon))
    assert held.database not in believed(daemon)


def test_what_is_written_of_one_clone_is_nothing_on_another(daemon: Daemon) -> None:
    with daemon.client() as client:
        good = client.lease("blog", timeout=30, ttl=600)
        bad = client.lease("blog", timeout=30)
        run(bad.url, comment_sql(bad.database, comment_of(daemon, good.database)))
        killed_and_started(daemon)
    eventually(lambda: bad.database not in clones_of(daemon))
    assert bad.database not in believed(daemon)
    assert good.database in believed(daemon)


def test_a_lease_cannot_have_its_clone_taken_for_a_parked_one(daemon: Daemon) -> None:
    """With all that is known outside of the daemon: names, the instance, the server's identity."""
    system = int(str(ask(daemon, "SELECT system_identifier FROM pg_control_system()")))
    namer = Namer("main", system)
    with daemon.client() as client:
        held = client.lease("blog", timeout=30)
        plain = comment_of(daemon, held.database)
        assert namer.parse(held.database) is not None
        proof = namer.mark(f"parked:{held.database}")
        forged = {**plain, "state": "parked", "used": False, "proof": proof}
        run(held.url, "DELETE FROM blog.tb_comment")
        run(held.url, comment_sql(held.database, forged))
        tell(daemon, f'ALTER DATABASE "{held.database}" ALLOW_CONNECTIONS false')
        killed_and_started(daemon)
    eventually(lambda: held.database not in clones_of(daemon))
    assert held.database not in believed(daemon)


def test_the_mark_of_a_parked_clone_is_good_for_one_start(daemon: Daemon) -> None:
    """Every role on the server can read and copy the comment while the clone is parked."""
    eventually(daemon.at_rest)
    daemon.stop()
    server = EmbeddedServer(EmbeddedSection(), daemon.state, 16)
    anyio.run(server.start)
    marks = {name: comment_of(daemon, name) for name in clones_of(daemon)}
    anyio.run(server.stop)
    parked = {name for name, mark in marks.items() if mark.get("state") == "parked"}
    daemon.start()
    eventually(lambda: len(daemon.events("clone.adopted")) == len(parked))
    with daemon.client() as client:
        held = client.lease("blog", timeout=30)
        assert held.database in parked
        run(held.url, "DELETE FROM blog.tb_comment")
        run(held.url, comment_sql(held.database, marks[held.database]))
        tell(daemon, f'ALTER DATABASE "{held.database}" ALLOW_CONNECTIONS false')
        killed_and_started(daemon)
    eventually(lambda: held.database not in clones_of(daemon))
    assert len(daemon.events("clone.adopted")) == len(parked)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "x" * 5_000_000, '{"clonepool": 1, "a": ' * 60_000]
)
def test_no_comment_keeps_the_next_daemon_from_starting(daemon: Daemon, text: str) -> None:
    with daemon.client() as client:
        held = client.lease("blog", timeout=30)
        run(held.url, f"COMMENT ON DATABASE \"{held.database}\" IS '{text}'")
        killed_and_started(daemon)
    eventually(lambda: held.database not in clones_of(daemon))
