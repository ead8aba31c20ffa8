"""The small parts of the service, each by itself."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from clonepool.config import CloneOptions, Config, EmbeddedSection, PoolSection
from clonepool.core.decisions import Lease
from clonepool.core.leases import token_digest
from clonepool.core.naming import Namer
from clonepool.errors import ConfigError, ServerUnavailableError, StatementError
from clonepool.observe.metrics import Metrics
from clonepool.postgres.capabilities import Capabilities
from clonepool.postgres.endpoint import Endpoint
from clonepool.service import clock, clone_comment
from clonepool.service.comment_locks import CommentLocks
from clonepool.service.credentials import Credentials
from clonepool.service.failures import Failures
from clonepool.service.limiter import PriorityLimiter
from clonepool.service.resources import Resources
from clonepool.service.state_files import Runs, begin_run, load_secret
from clonepool.service.storage import MEBIBYTE, NoRoomError, StorageBudget

if TYPE_CHECKING:
    from pathlib import Path

    from clonepool.postgres.roles import Ownership, Roles
    from clonepool.postgres.session import Session

LEASE = Lease("secret", "blog", "abcdefgh", "clone_1", 1, "me", 10.0, 60.0, 70.0)


SECRET = b"s" * 32


def writer(instance: str = "main", secret: bytes = SECRET) -> clone_comment.Comments:
    return clone_comment.Comments(Namer(instance, 7), secret, Runs("this", "before"))


def next_daemon() -> clone_comment.Comments:
    return clone_comment.Comments(Namer("main", 7), SECRET, Runs("next", "this"))


def test_a_comment_says_what_the_next_daemon_must_know_and_not_the_token() -> None:
    written = writer().leased(LEASE, 30.0, "noon")
    assert "secret" not in str(written)
    found = next_daemon().read(LEASE.clone, json.loads(json.dumps(written)))
    assert isinstance(found, clone_comment.LeasedComment)
    assert found.token == token_digest("secret")
    assert found.occasion == "noon"
    assert clock.seconds_until(found.until) == pytest.approx(40.0, abs=0.1)
    assert clock.seconds_until(found.granted) == pytest.approx(-20.0, abs=0.1)


@pytest.mark.parametrize(
    "strange",
    [
        {},
        {"state": "leased"},
        {"state": "new"},
        {"state": "kept", "until": 3},
        {"state": "kept", "label": "\ud800", "proof": "\ud800"},
        {"state": "kept", "proof": {"a": [1, None]}},
        {"state": "leased", "ttl": 10**400, "proof": float("nan")},
    ],
)
def test_a_comment_that_is_not_ours_says_nothing(strange: dict[str, Any]) -> None:
    assert isinstance(writer().read("clone_1", strange), clone_comment.OtherComment)


def test_a_comment_is_good_for_this_daemons_secret_this_clone_and_as_it_was_written() -> None:
    for written in (
        writer().leased(LEASE, 30.0, "noon"),
        writer().kept("blog", "g", "clone_1", "mé", 100.0),
        writer().parked("blog", "g", "clone_1", used=True),
    ):
        good = next_daemon()
        assert not isinstance(good.read("clone_1", written), clone_comment.OtherComment)
        assert isinstance(good.read("clone_2", written), clone_comment.OtherComment)
        for name in written:
            altered = {**written, name: "other"}
            assert isinstance(good.read("clone_1", altered), clone_comment.OtherComment)
            shorter = {key: value for key, value in written.items() if key != name}
            assert isinstance(good.read("clone_1", shorter), clone_comment.OtherComment)
        stranger = writer(secret=b"t" * 32).read("clone_1", written)
        assert isinstance(stranger, clone_comment.OtherComment)


def test_the_mark_of_a_parked_clone_is_good_for_the_next_daemon_alone() -> None:
    written = writer().parked("blog", "g", "clone_1", used=False)
    after_next = clone_comment.Comments(Namer("main", 7), SECRET, Runs("after", "next"))
    assert isinstance(next_daemon().read("clone_1", written), clone_comment.ParkedComment)
    assert isinstance(after_next.read("clone_1", written), clone_comment.OtherComment)


def test_each_run_knows_the_word_of_the_one_before(tmp_path: Path) -> None:
    first, second = begin_run(tmp_path / "run"), begin_run(tmp_path / "run")
    assert first.former == ""
    assert second.former == first.own
    assert second.own != first.own


def test_under_the_same_boot_a_moment_does_not_follow_the_wall_clock() -> None:
    written = writer().kept("blog", "g", "clone_1", "me", 100.0)["until"]
    shifted = clock.Moment(written["at"] - 3600, written["boot"], written["since_boot"])
    assert clock.seconds_until(shifted) == pytest.approx(100.0, abs=0.1)


def test_after_a_reboot_a_moment_is_the_wall_clocks() -> None:
    rebooted = clock.Moment(time.time() + 50.0, "another boot", 1.0)
    assert clock.seconds_until(rebooted) == pytest.approx(50.0, abs=0.1)


def test_the_guard_says_no_before_the_disk_is_full(tmp_path: Path) -> None:
    free = StorageBudget(Config(), tmp_path, in_memory=False).free()
    assert free is not None
    floor = free // MEBIBYTE - 100
    config = Config(embedded=EmbeddedSection(min_free_mib=floor))
    budget = StorageBudget(config, tmp_path, in_memory=False)
    with budget.room(60 * MEBIBYTE, 0):
        with pytest.raises(NoRoomError, match="to stay free") as caught:
            budget.begin(60 * MEBIBYTE, 0)
        assert caught.value.limit == "storage"
    with budget.room(60 * MEBIBYTE, 0):
        pass


def test_a_server_by_url_has_a_budget_only() -> None:
    budget = StorageBudget(Config(pool=PoolSection(max_storage_mib=10)), None, in_memory=False)
    assert budget.free() is None
    budget.begin(6 * MEBIBYTE, 6 * MEBIBYTE)
    with pytest.raises(NoRoomError, match="12 MiB of 10 MiB"):
        budget.begin(6 * MEBIBYTE, 12 * MEBIBYTE)
    assert budget.is_short(6 * MEBIBYTE, 12 * MEBIBYTE)
    assert not budget.is_short(6 * MEBIBYTE, 6 * MEBIBYTE)


def test_a_failure_is_logged_once_for_each_cause_and_once_when_it_is_over() -> None:
    failures = Failures(Metrics(CollectorRegistry(), ["blog"]), Resources(time.monotonic))
    with capture_logs() as logs:
        for number in range(5):
            failures.begin("x.failed", "blog", ServerUnavailableError(f"clone {number} is gone"))
        for _ in range(5):
            failures.begin("x.failed", "blog", StatementError("no", sqlstate="42501"))
        failures.end("x.failed", "blog")
        failures.end("x.failed", "blog")
    assert [entry["event"] for entry in logs] == ["x.failed", "x.failed", "trouble.ended"]


def test_what_an_attempt_expects_is_no_failure_and_passes() -> None:
    failures = Failures(Metrics(CollectorRegistry(), ["blog"]), Resources(time.monotonic))
    with (
        capture_logs() as logs,
        pytest.raises(StatementError),
        failures.attempt("x.failed", "blog", expected=(StatementError,)),
    ):
        raise StatementError("no", sqlstate="42501")
    assert logs == []


class FakeRoles:
    """Takes note of the passwords that logins get."""

    def __init__(self) -> None:
        self.passwords: dict[str, list[str]] = {}

    async def create_login(self, clone: str, _: Ownership, password: str) -> None:
        self.passwords[clone] = [password]

    async def renew(
        self, clone: str, _: Ownership, password: str, session: Session | None = None
    ) -> None:
        assert session is None
        self.passwords[clone].append(password)


ABLE = Capabilities(180_000, "18", 1, True, 100, "UTF8", "C")
SERVER = Endpoint("/run/pg", 5432, "postgres", "p@ss")


@pytest.mark.anyio
async def test_each_lease_has_a_password_of_its_own_that_a_later_daemon_can_tell() -> None:
    roles, options = FakeRoles(), CloneOptions()
    credentials = Credentials(cast("Roles", roles), SERVER, ABLE, b"secret", embedded=True)
    await credentials.give("clone_1", options)
    first, occasion = credentials.of(LEASE), credentials.occasion("clone_1")
    assert first.url == f"postgresql://clone_1:{first.password}@/clone_1?host=/run/pg&port=5432"
    assert first.env["DATABASE_URL"] == first.url
    assert (first.env["PGUSER"], first.env["PGPASSWORD"]) == (first.user, first.password)
    await credentials.renew("clone_1", options)
    second = credentials.of(LEASE)
    assert roles.passwords["clone_1"] == [first.password, second.password]
    assert first.password != second.password
    later = Credentials(cast("Roles", roles), SERVER, ABLE, b"secret", embedded=True)
    later.found("clone_1", occasion)
    assert later.of(LEASE) == first
    other = Credentials(cast("Roles", roles), SERVER, ABLE, b"another", embedded=True)
    other.found("clone_1", occasion)
    assert other.of(LEASE).password != first.password


def test_where_our_role_can_make_no_others_leases_log_in_as_it() -> None:
    ordinary = msgspec.structs.replace(ABLE, superuser=False)
    credentials = Credentials(
        cast("Roles", FakeRoles()), SERVER, ordinary, b"secret", embedded=False
    )
    assert not credentials.ownership(CloneOptions()).has_logins
    url = "postgresql://postgres:p%40ss@/clone_1?host=/run/pg&port=5432"
    assert credentials.of(LEASE).url == url
    with pytest.raises(ConfigError, match="lacks CREATEROLE"):
        credentials.ownership(CloneOptions(owner="app"))
    with pytest.raises(ConfigError, match="is not a superuser"):
        credentials.ownership(CloneOptions(rights="superuser"))


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = load_secret(path)
    assert load_secret(path) == first
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.anyio
async def test_a_place_that_is_held_too_long_is_given_to_another() -> None:
    limiter, order = PriorityLimiter(1), list[str]()
    hanging = anyio.Event()

    async def hang() -> None:
        async with limiter.place(lambda: 2, seconds=0.01):
            await hanging.wait()
        order.append("hanging")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hang)
        await anyio.lowlevel.checkpoint()
        with anyio.fail_after(5):
            async with limiter.place(lambda: 0):
                order.append("urgent")
        hanging.set()
    async with limiter.place(lambda: 0):
        order.append("free again")
    assert order == ["urgent", "hanging", "free again"]


@pytest.mark.anyio
async def test_writers_of_a_comment_take_turns_in_the_order_in_which_they_came() -> None:
    locks, order = CommentLocks(), list[int]()

    async def write(number: int) -> None:
        async with locks.hold("clone_1"):
            await anyio.lowlevel.checkpoint()
            order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(write, number)
    assert order == [0, 1, 2, 3, 4]
    assert len(locks) == 0
