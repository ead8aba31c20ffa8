"""The daemon is killed right before and right after each decision of its pool is carried out.

One load takes every path. It records what the daemon acknowledged until the daemon is gone. Then an
ordinary daemon is started on what is left, and must keep all of that.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from clonepool.errors import (
    AcquireTimeoutError,
    ConnectionLostError,
    DaemonNotFoundError,
    NotYourLeaseError,
    PoolFullError,
)
from clonepool.postgres.endpoint import from_url
from support.client_sessions import ClientGateway
from support.daemons import Daemon, clean_up, eventually
from support.kill_points import NOWHERE, spawn
from support.queries import ask, clones_of, own_url, value
from support.raw_connection import RawConnection
from support.servers import ROOT, open_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clonepool.client import Client, Lease

CONFIG = f"""
[http]
listen = ""
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 2
max_clones = 6
"""
USERS = 40
WHEN = ("before", "after")
EMPTIED = "SET session_replication_role = replica; DELETE FROM blog.tb_user"
COUNT = "SELECT count(*) FROM blog.tb_user"
MARKED = "SELECT to_regclass('mark') IS NOT NULL"
TEMPLATES = "SELECT count(*) FROM pg_database WHERE datname LIKE 'cp\\_%' AND datistemplate"
TTL = 60.0
STARTS = [
    "before:build.create:1",
    *(
        f"after:build.{step}:1"
        for step in ("create", "file", "freeze", "annotate", "seal", "rename")
    ),
]
DECISIONS = [
    f"{when}:{work}"
    for work in (
        # the first of those that fill the pool, and one that makes good what was leased
        "create:1", "create.copy:1", "create:4",
        # of a lease that ends with its connection, of one with a ttl, after a reset
        "grant:1", "grant:2", "grant:3", "refuse:1",
        # a lease with a ttl, its renewal, that of one without, and a reset
        "record:1", "record:2", "record:3", "record:5", "renewed:1", "renewed:2",
        # that a lease is about to expire, and that it has
        "notice:1", "notice:2",
        "recycle:1", "recycle.write:1", "recycle.clean:1", "keep:1", "drop:1",
    )
    for when in ("before", "after")
]  # fmt: skip
STOPS = [f"{when}:{work}" for work in ("park:1", "park.seal:1") for when in ("before", "after")]
ADOPTIONS = [
    f"{when}:{work}" for work in ("adopt:1", "adopt.unseal:1") for when in ("before", "after")
]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with open_directory() as directory:
        daemon = Daemon(directory, CONFIG)
        try:
            yield daemon
        finally:
            clean_up(daemon)


@pytest.fixture
def recreating() -> Iterator[Daemon]:
    with open_directory() as directory:
        daemon = Daemon(directory, CONFIG + 'recycle = "recreate"\n')
        try:
            yield daemon
        finally:
            clean_up(daemon)


@dataclass
class Book:
    """What the daemon acknowledged; of what is under way when it dies, nothing is known."""

    held: dict[str, str] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    """All leases: one that is not referenced is released."""

    def acquire(self, client: Client, ttl: float | None = None) -> Lease:
        lease = client.lease("blog", timeout=20, ttl=ttl)
        self.leases.append(lease)
        if ttl is not None:
            self.held[lease.token] = lease.database
        mark(lease)
        return lease

    def renew(self, lease: Lease, ttl: float | None = None) -> None:
        lease.renew(ttl)
        self.held[lease.token] = lease.database

    def reset(self, lease: Lease) -> None:
        lasting = self.held.pop(lease.token, None) is not None
        lease.reset(timeout=20)
        if lasting:
            self.held[lease.token] = lease.database
        mark(lease)

    def release(self, client: Client, lease: Lease, *, keep: bool = False) -> None:
        self.held.pop(lease.token, None)
        ended = client.call("release", lease=lease.token, keep=keep, report=True)
        self.released.append(lease.token)
        if ended["kept_seconds"]:
            self.kept.append(ended["kept"])


def everything(client: Client, book: Book) -> None:
    """Do all that a client can do."""
    bound = book.acquire(client)
    lasting = book.acquire(client, TTL)
    book.renew(lasting)
    book.reset(bound)
    book.renew(bound, TTL)
    book.release(client, book.acquire(client, TTL))
    book.reset(lasting)
    book.release(client, book.acquire(client), keep=True)
    book.release(client, book.acquire(client))
    short = client.lease("blog", timeout=20, ttl=0.3)
    mark(short)
    eventually(lambda: all(x["database"] != short.database for x in client.call("leases")))
    others = [book.acquire(client) for _ in range(3)]
    with pytest.raises((AcquireTimeoutError, PoolFullError)):
        client.lease("blog", timeout=0.1)
    for lease in others:
        book.release(client, lease)


def run_until_killed(
    daemon: Daemon,
    killed_at: str,
    late: str = NOWHERE,
    load: Callable[[Client, Book], None] = everything,
) -> Book:
    """Run the daemon and the load until the one ends the other; then tell it to stop."""
    book = Book()
    process = daemon.process = spawn(daemon, killed_at, late)
    eventually(lambda: process.poll() is not None or listens(daemon))
    with contextlib.suppress(ConnectionLostError, DaemonNotFoundError):
        with daemon.client() as client:
            load(client, book)
        eventually(lambda: is_whole(daemon.pool()), what="there are clones to park")
        process.terminate()
    assert process.wait(20) == -signal.SIGKILL, f"it never came to {killed_at}"
    return book


def listens(daemon: Daemon) -> bool:
    try:
        daemon.client().close()
    except DaemonNotFoundError:
        return False
    return True


def check(daemon: Daemon, book: Book) -> None:
    """Start the daemon as it is, and see that it keeps what the one before it promised."""
    daemon.start()
    eventually(lambda: is_whole(daemon.pool()), what="the pool is whole")
    with daemon.client() as client:
        leased = {lease["database"] for lease in client.call("leases")}
        assert set(book.held.values()) <= leased
        for token in book.released:
            with pytest.raises(NotYourLeaseError):
                client.call("renew", lease=token)
        ready = [client.lease("blog") for _ in range(daemon.pool()["ready"])]
        eventually(lambda: is_complete(daemon, client, book), what="no database without owner")
        for lease in ready:
            assert value(lease.url, MARKED) is False, "a clone that was used was granted again"
            assert value(lease.url, COUNT) == USERS
        for token, database in book.held.items():
            assert client.call("renew", lease=token, ttl=TTL)["expires_in_seconds"] > TTL / 2
            assert value(own_url(daemon, database), MARKED) is True, "a lease lost its data"
            client.call("release", lease=token)
        for database in book.kept:
            assert value(own_url(daemon, database), MARKED) is True
    eventually(lambda: is_whole(daemon.pool()), what="the pool is whole")
    for event in ("request.failed", "worker.failed", "work.failed"):
        assert not daemon.events(event)


def is_whole(pool: dict[str, Any]) -> bool:
    under_way = ("creating", "returned", "recycling", "dropping", "parked")
    return pool["ready"] >= pool["min_ready"] and not any(pool[state] for state in under_way)


def is_complete(daemon: Daemon, client: Client, book: Book) -> bool:
    """Say whether the databases on the server are those that the daemon has, and no others."""
    there = clones_of(daemon)
    pool = daemon.pool()
    leased = [lease["database"] for lease in client.call("leases")]
    assert pool["leased"] == len(leased), "a clone is leased without a lease"
    assert pool["kept"] >= len(book.kept)
    owned = sum(pool[state] for state in ("ready", "leased", "kept"))
    return {*leased, *book.kept} <= there and len(there) == owned and ask(daemon, TEMPLATES) == 1


def mark(lease: Lease) -> None:
    """Leave something of ours in a clone."""
    anyio.run(_execute, lease.url, "CREATE TABLE mark ()")


async def _execute(url: str, sql: str) -> None:
    endpoint = from_url(url)
    async with ClientGateway(endpoint, "test").session(endpoint.maintenance) as session:
        await session.execute(sql)


@pytest.mark.parametrize("killed_at", STARTS)
def test_a_daemon_killed_while_it_builds_a_template_leaves_none_or_a_whole_one(
    daemon: Daemon, killed_at: str
) -> None:
    check(daemon, run_until_killed(daemon, killed_at))


@pytest.mark.parametrize("killed_at", DECISIONS)
def test_a_daemon_killed_at_any_decision_breaks_no_promise(daemon: Daemon, killed_at: str) -> None:
    check(daemon, run_until_killed(daemon, killed_at))


@pytest.mark.parametrize("killed_at", STOPS)
def test_a_daemon_killed_while_it_parks_its_clones_breaks_no_promise(
    daemon: Daemon, killed_at: str
) -> None:
    check(daemon, run_until_killed(daemon, killed_at))


@pytest.mark.parametrize("killed_at", ADOPTIONS)
def test_a_daemon_killed_while_it_adopts_clones_breaks_no_promise(
    daemon: Daemon, killed_at: str
) -> None:
    daemon.start()
    eventually(lambda: is_whole(daemon.pool()), what="the pool is whole")
    assert daemon.stop() == 0
    check(daemon, run_until_killed(daemon, killed_at))


@pytest.mark.parametrize(
    ("killed_at", "late"),
    [
        ("after:record:2", "before:recycle:1=9"),
        ("after:recycle.write:1", "before:record:2=9"),
        ("before:grant:3", "before:recycle:1=9"),  # the reset itself was answered
    ],
)
def test_a_lease_whose_reset_was_interrupted_has_one_clone_or_none(
    daemon: Daemon, killed_at: str, late: str
) -> None:
    def reset(client: Client, book: Book) -> None:
        book.reset(book.acquire(client, TTL))
        book.acquire(client)

    check(daemon, run_until_killed(daemon, killed_at, late, reset))


@pytest.mark.parametrize("end", ["release", "disconnect", "renewed elsewhere"])
def test_a_lease_that_ended_while_it_was_renewed_is_over_for_the_next_daemon_too(
    recreating: Daemon, end: str
) -> None:
    daemon = recreating

    def renew_and_end(client: Client, book: Book) -> None:
        with contextlib.closing(RawConnection(daemon.socket)) as lines:
            lines.send(1, "acquire", template="blog", timeout=20)
            token = lines.receive()["result"]["lease"]
            if end == "renewed elsewhere":
                with contextlib.closing(RawConnection(daemon.socket)) as other:
                    other.send(1, "renew", lease=token, ttl=TTL)
                for _ in range(10):  # rounds of the daemon's loop: it has seen the other off
                    client.call("ping")
            else:
                lines.send(2, "renew", lease=token, ttl=TTL)
            if end != "disconnect":
                lines.send(3, "release", lease=token, report=True)
                while lines.receive()["id"] != 3:
                    pass
            book.released.append(token)

    late = "before:record:1=0.3,before:drop:1=1"
    book = run_until_killed(daemon, "before:drop:1", late, renew_and_end)
    assert book.released
    check(daemon, book)


@pytest.mark.parametrize(
    "killed_at", [f"{when}:{work}" for work in ("rewind:1", "rewind.restore:1") for when in WHEN]
)
def test_a_daemon_killed_while_it_rewinds_grants_nothing_half_undone(
    daemon: Daemon, killed_at: str
) -> None:
    daemon.config.write_text(CONFIG + 'recycle = "auto"\n')

    def change_rows(client: Client, book: Book) -> None:
        lease = client.lease("blog", timeout=20)
        book.leases.append(lease)
        anyio.run(_execute, lease.url, EMPTIED)
        book.release(client, lease)

    check(daemon, run_until_killed(daemon, killed_at, load=change_rows))


@pytest.mark.parametrize("killed_at", ["before:recycle:1", "before:recycle.write:1"])
def test_a_daemon_killed_before_it_wrote_an_end_down_goes_on_with_the_lease(
    daemon: Daemon, killed_at: str
) -> None:
    """Clients that asked for no report were answered; the lease continues until its TTL ends."""
    told: list[Any] = []

    def release(client: Client, book: Book) -> None:
        lease = book.acquire(client, TTL)  # which stays in the book: it is held
        told.append(client.call("release", lease=lease.token))

    book = run_until_killed(daemon, killed_at, load=release)
    assert [answer["leaked"] for answer in told] == [None]
    check(daemon, book)
