"""docs/protocol.md holds: its example, and its promises about lines, pipelining and tokens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from clonepool.protocol import messages
from support.daemons import Daemon, eventually
from support.raw_connection import RawConnection
from support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()


@pytest.fixture
def lines(shared_daemon: Daemon) -> Iterator[RawConnection]:
    eventually(shared_daemon.at_rest)
    opened = RawConnection(shared_daemon.socket)
    yield opened
    opened.close()
    eventually(shared_daemon.at_rest)


def session() -> list[tuple[str, str]]:
    """Return the requests of the example, each with the reply that is shown."""
    block = DOCUMENT.split("```")[1].strip().splitlines()[1:]
    return list(zip(block[::2], block[1::2], strict=True))


def keys_shown(reply: str) -> list[str]:
    return re.findall(r'"(\w+)":', reply.partition('"result":')[2])


def test_the_example_can_be_pasted(shared_daemon: Daemon, lines: RawConnection) -> None:
    token = ""
    for asked, shown in session():
        request = json.loads(asked.replace("pY3…", token))
        lines.send(request["id"], request["method"], **request.get("params", {}))
        got = lines.receive()
        assert set(keys_shown(shown)) <= set(got["result"])
        token = got["result"].get("lease", token)
    assert shared_daemon.pool()["leased"] == 0


@pytest.mark.skipif(shutil.which("nc") is None, reason="nc is not installed")
def test_nc_is_enough(shared_daemon: Daemon) -> None:
    if "-U" not in subprocess.run(["nc", "-h"], capture_output=True, text=True, check=False).stderr:
        pytest.skip("this nc knows no Unix sockets")
    done = subprocess.run(
        ["nc", "-U", "-N", str(shared_daemon.socket)],
        input='{"id":1,"method":"ping"}\n', capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"jsonrpc": "2.0", "id": 1, "result": {}}


def test_requests_are_pipelined_and_replies_come_as_they_are_ready(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    with shared_daemon.client() as holder:
        held = [holder.lease("blog", timeout=30) for _ in range(12)]
        lines.send("slow", "acquire", template="blog", timeout=30)
        lines.send(2, "ping")
        lines.send(3, "nonsense")
        assert [lines.receive()["id"] for _ in range(2)] == [2, 3]
        held[0].release()
        assert lines.receive()["id"] == "slow"


def test_the_two_requests_that_are_shown_for_one_write_are_answered_in_order(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    shown = DOCUMENT.split("**Exchanging a lease.**")[1].split("```")[1].strip().splitlines()
    lines.send(1, "acquire", template="blog", timeout=30)
    first = lines.receive()["result"]["lease"]
    lines.write(*(json.loads(line.replace("pY3…", first)) for line in shown))
    back, following = lines.receive(), lines.receive()
    assert [back["id"], following["id"]] == ["back", "next"]
    lines.send(2, "release", lease=following["result"]["lease"])
    assert lines.receive()["id"] == 2
    assert shared_daemon.pool()["leased"] == 0


def test_tokens_are_unguessable_and_shown_to_the_holder_only(lines: RawConnection) -> None:
    seen = set()
    for number in range(20):
        lines.send(number, "acquire", template="blog", timeout=30)
        token = lines.receive()["result"]["lease"]
        lines.send(number, "leases")
        lines.send(number, "status")
        assert token not in json.dumps([lines.receive(), lines.receive()])
        lines.send(number, "release", lease=token)
        lines.receive()
        assert re.fullmatch(r"[0-9a-f]{32}", token)
        seen.add(token)
    assert len(seen) == 20


def test_any_client_with_the_token_may_end_the_lease(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    with shared_daemon.client() as holder:
        lease = holder.lease("blog", timeout=30)
        for wrong in (lease.token.swapcase(), lease.token[:-1], "sha256:", lease.database):
            lines.send(1, "release", lease=wrong)
            assert lines.receive()["error"]["data"]["code"] == "not_your_lease"
        lines.send(2, "release", lease=lease.token, report=True)
        assert lines.receive()["result"]["leaked"] == []


def test_an_unknown_field_is_named_and_changes_nothing(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    lines.send(1, "acquire", template="blog", tll=5)
    error = lines.receive()["error"]
    assert error["data"]["code"] == "bad_request"
    assert "tll" in error["message"]
    assert shared_daemon.pool()["leased"] == 0


def test_a_client_from_the_contract_alone_gets_what_each_notification_promises(
    shared_daemon: Daemon, lines: RawConnection
) -> None:
    lines.send(1, "acquire", template="blog", timeout=30, ttl=0.5, label="me")
    granted = lines.receive()["result"]
    news: list[dict[str, Any]] = [lines.receive(), lines.receive()]
    assert [n["method"] for n in news] == ["lease.expiring", "lease.expired"]
    for said in news:
        assert "id" not in said
        assert set(said["params"]) == set(messages.LeaseNews.__struct_fields__)
        assert said["params"]["lease"] == granted["lease"]
    eventually(shared_daemon.at_rest)


@pytest.mark.parametrize("name", sorted(messages.NOTIFICATIONS))
def test_the_contract_names_every_notification_and_its_fields(name: str) -> None:
    rows = "\n".join(re.findall(rf"^\| `{re.escape(name)}` \|.*$", DOCUMENT, re.MULTILINE))
    for shape in messages.NOTIFICATIONS[name]:
        for field in shape.__struct_fields__:
            assert f"`{field}`" in rows or "the same" in rows, field
