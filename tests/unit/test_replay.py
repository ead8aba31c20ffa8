"""A replay of a recording makes the same decisions; a changed decision is found."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import structlog.testing
from click.testing import CliRunner

from clonepool.cli import cli
from clonepool.core import events as ev
from clonepool.core import recording
from clonepool.core.decisions import CreateClone, Grant, Lease
from clonepool.core.leases import token_digest
from clonepool.core.limits import Limits
from clonepool.core.naming import Serials
from clonepool.errors import (
    ClonepoolError,
    ConfigError,
    ResourceError,
    ServerUnavailableError,
    StatementError,
    TemplateFailedError,
)
from clonepool.service.recorder import Recorder
from support.pools import request

if TYPE_CHECKING:
    from clonepool.core.decisions import Decision

SECRET = "5ecre7" * 5
LIMITS = {"blog": Limits(1, 3, rewinds=True), "shop": Limits(0, 2)}
BEGINNING = recording.Beginning("1.0", "test", 1, 4, LIMITS)


class Run:
    """A fleet whose events are recorded."""

    def __init__(self) -> None:
        self.serials = Serials(0)
        self.fleet = BEGINNING.fleet(self.serials)
        self.lines = [recording.encode(BEGINNING)]

    def happens(self, *events: ev.Event, now: float = 1.25) -> list[Decision]:
        every: list[Decision] = []
        for event in events:
            decisions = self.fleet.handle(event, now)
            step = recording.recorded_event(now, event, decisions, self.serials)
            self.lines.append(recording.encode(step))
            every += decisions
        return every

    def find_lease(self) -> None:
        """Let a lease be there that an earlier daemon wrote down."""
        lease = Lease(token_digest(SECRET), "blog", "abcdefgh", "found", 0, "x", -1.0, 9.0, 9.0)
        self.happens(ev.FoundLeased(lease))


def eventful() -> Run:
    """Return a run with something of everything."""
    run = Run()
    run.find_lease()
    run.happens(ev.FoundUnknown("blog", "old"), ev.CloneDropped("blog", "old"))
    run.happens(ev.FoundParked("blog", "parked", "abcdefgh", used=True))
    run.happens(ev.TemplateReady("blog", "abcdefgh"), ev.CloneAdopted("blog", "parked"))
    (grant,) = run.happens(ev.Acquire("blog", request(1)))[:1]
    assert isinstance(grant, Grant)
    run.serials.next()  # others take numbers too
    run.happens(ev.TemplateReady("shop", "bcdefghi"))
    made = run.happens(ev.Acquire("shop", request(2, holder=2)))
    (create,) = (each for each in made if isinstance(each, CreateClone))
    declined = ResourceError("full", limit="storage", remedy="delete")
    run.happens(ev.CreateDeclined("shop", create.clone, declined))
    run.happens(ev.Renew(SECRET, 5.0, request(3)), ev.Release(SECRET))
    refused = StatementError("no", sqlstate="28000")
    run.happens(ev.LeaseNotRecorded("blog", 3, refused), ev.ServerLost("it is gone"))
    run.happens(ev.TimeCame(), now=20.0)
    run.happens(ev.Stop(), ev.EndLeases(), now=21.0)
    return run


def test_a_run_is_decided_the_same_again() -> None:
    run = eventful()
    found = recording.replay(run.lines)
    assert found == recording.Replayed(1, len(run.lines) - 1, None, [])


def test_a_decision_that_is_another_now_is_named_with_its_line() -> None:
    run = eventful()
    (number,) = (n for n, line in enumerate(run.lines) if b'"type":"ServerLost"' in line)
    line = run.lines[number]
    run.lines[number] = line.replace(b"it is gone", b"it is away")
    difference = recording.replay(run.lines).difference
    assert difference is not None
    assert difference.line == number + 2, "the refusal that tells of it"
    assert "it is gone" in difference.recorded
    assert "it is away" in difference.replayed


@pytest.mark.parametrize("change", ["less", "more", "raised"])
def test_a_decision_too_few_or_too_many_is_found(change: str) -> None:
    run = eventful()
    number, step = next(
        (n, json.loads(line)) for n, line in enumerate(run.lines) if b'"CreateClone"' in line
    )
    if change == "less":
        step["decisions"] += step["decisions"][:1]
    elif change == "more":
        step["decisions"] = []
    else:
        step["event"] = {"type": "Release", "token": "nobody's"}
    run.lines[number] = json.dumps(step).encode()
    difference = recording.replay(run.lines).difference
    assert difference is not None
    assert difference.line == number + 1
    assert (difference.replayed == "") == (change == "less")
    assert (difference.recorded == "") == (change == "more")
    assert ("NotYourLeaseError" in difference.replayed) == (change == "raised")


def test_a_grant_at_once_and_what_follows_it_are_what_an_acquire_decides() -> None:
    run = Run()
    (create,) = run.happens(ev.TemplateReady("blog", "abcdefgh"))
    assert isinstance(create, CreateClone)
    run.happens(ev.CloneCreated("blog", create.clone))
    granted = run.fleet.grant_at_once("blog", request(1), 2.0)
    assert isinstance(granted, Grant)
    decisions = [granted, *run.fleet.plan_after_grant("blog", 2.0)]
    assert any(isinstance(each, CreateClone) for each in decisions)
    step = recording.recorded_event(2.0, ev.Acquire("blog", request(1)), decisions, run.serials)
    run.lines.append(recording.encode(step))
    run.happens(ev.Release("token-1"), now=3.0)
    assert recording.replay(run.lines).difference is None


def test_no_token_is_in_a_recording() -> None:
    text = b"".join(eventful().lines)
    for token in (SECRET, "token-1", "token-2"):
        assert token.encode() not in text
        assert token_digest(token).encode() not in text


def test_a_line_that_a_killed_daemon_left_unfinished_is_skipped_and_named() -> None:
    first, second = eventful().lines, eventful().lines
    cut = [*first, b'{"type":"Step","now":1.0\n', *second, b'{"type"']
    found = recording.replay(cut)
    assert (found.runs, found.difference) == (2, None)
    assert found.unread == [len(first) + 1, len(cut)]


def test_what_is_no_recording_is_refused() -> None:
    lines = eventful().lines
    with pytest.raises(ValueError, match="line 1 comes before the beginning"):
        recording.replay(lines[1:])
    newer = msgspec.structs.replace(BEGINNING, format=recording.FORMAT + 1)
    with pytest.raises(ValueError, match="line 1 is of format 2"):
        recording.replay([recording.encode(newer)])


def members(union: object) -> list[type[msgspec.Struct]]:
    return list(typing.get_args(union))


@pytest.mark.parametrize("kind", members(ev.Event), ids=lambda kind: kind.__name__)
def test_every_event_can_be_written_and_read(kind: type[msgspec.Struct]) -> None:
    filled: dict[str, object] = {
        "template": "blog", "request": request(1), "token": "a", "ttl": 1.5, "seconds": 2.0,
        "holder": 1, "tests": 2, "parallelism": 3, "waiter": 4, "waiters": (5, 6), "on": True,
        "problem": "x", "error": ServerUnavailableError("x"), "obstacle": None,
        "limits": LIMITS["blog"], "generation": "abcdefgh", "clone": "c", "clones": ("c", "d"),
        "locked_out": False, "used": True, "until": 3.5,
        "lease": Lease("a", "blog", "g", "c", 1, "l", 0.0),
    }  # fmt: skip
    event = kind(**{name: filled[name] for name in kind.__struct_fields__})
    line = recording.encode(recording.RecordedEvent(1.0, 2, event, []))  # type: ignore[arg-type]
    read = recording.decode(line)
    assert isinstance(read, recording.RecordedEvent)
    assert type(read.event) is kind
    assert recording.encode(read).count(b'"type"') == 2


@pytest.mark.parametrize(
    "error",
    [
        ServerUnavailableError("gone", remedy="wait"),
        ResourceError("full", limit="storage"),
        StatementError("no", sqlstate="28P01", remedy="ask"),
        TemplateFailedError("x"),
    ],
)
def test_an_error_means_the_same_to_the_core_when_it_is_read(error: ClonepoolError) -> None:
    step = recording.RecordedEvent(1.0, 0, ev.CreateFailed("blog", "c", error), [])
    read = recording.decode(recording.encode(step))
    assert isinstance(read, recording.RecordedEvent)
    assert isinstance(read.event, ev.CreateFailed)
    again = read.event.error
    assert (again.code, again.sentence()) == (error.code, error.sentence())
    for kind in (ResourceError, StatementError):
        assert isinstance(again, kind) == isinstance(error, kind)


# The file -------------------------------------------------------------------------------------


def test_a_recorder_adds_run_after_run_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for ending in (b'{"type":"St', b""):
        serials = Serials(0)
        fleet = BEGINNING.fleet(serials)
        recorder = Recorder(path, BEGINNING, serials)
        event = ev.TemplateReady("blog", "abcdefgh")
        recorder.record(2.0, event, fleet.handle(event, 2.0))
        recorder.close()
        recorder.record(3.0, event, [])
        path.write_bytes(path.read_bytes() + ending)
    assert path.stat().st_mode & 0o777 == 0o600
    result = CliRunner().invoke(cli, ["replay", str(path)])
    assert "2 events of 2 runs: every decision is the same" in result.output
    assert "line 3 is not whole" in result.output
    assert result.exit_code == 0
    path.write_text(path.read_text().replace('"min_ready":1', '"min_ready":0'))
    result = CliRunner().invoke(cli, ["replay", str(path)])
    assert "line 2 is decided differently" in result.output
    assert "replayed: nothing more" in result.output
    assert result.exit_code == 1


def test_a_file_that_cannot_be_written_to_ends_the_recording_alone() -> None:
    with structlog.testing.capture_logs() as logs:
        recorder = Recorder(Path("/dev/full"), BEGINNING, Serials(0))
        recorder.record(1.0, ev.TimeCame(), [])
    assert [entry["event"] for entry in logs] == ["recording.failed"]


def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot record to"):
        Recorder(tmp_path / "missing" / "run.jsonl", BEGINNING, Serials(0))


def test_a_hit_beyond_the_common_limit_is_decided_the_same_again() -> None:
    limits = {"blog": Limits(0, 9, rewinds=True), "shop": Limits(0, 2)}
    beginning, serials = recording.Beginning("1.0", "test", 1, 1, limits), Serials(0)
    fleet, lines = beginning.fleet(serials), [recording.encode(beginning)]

    def happens(event: ev.Event) -> None:
        step = recording.recorded_event(1.0, event, fleet.handle(event, 1.0), serials)
        lines.append(recording.encode(step))

    happens(ev.TemplateReady("blog", "abcdefgh"))
    happens(ev.TemplateReady("shop", "abcdefgh"))
    for number in range(7):
        token, clone = token_digest(f"t{number}"), f"clone{number}"
        happens(ev.FoundLeased(Lease(token, "blog", "abcdefgh", clone, 0, "", 0.0, 99.0, 99.0)))
    for number in range(7):
        happens(ev.Release(f"t{number}"))
        happens(ev.CloneRewound("blog", f"clone{number}"))
    happens(ev.Acquire("shop", request(1)))
    asked = request(2)
    granted = fleet.grant_at_once("blog", asked, 1.0)  # as the dispatcher does
    assert granted is not None
    decided = [granted, *fleet.plan_after_grant("blog", 1.0)]
    step = recording.recorded_event(1.0, ev.Acquire("blog", asked), decided, serials)
    assert recording.replay([*lines, recording.encode(step)]).difference is None


def test_a_template_may_be_called_token() -> None:
    beginning = recording.Beginning("1.0", "test", 1, 4, {"token": Limits(1, 3)})
    assert recording.decode(recording.encode(beginning)) == beginning


def test_an_event_that_cannot_be_written_ends_the_recording_and_nothing_else(
    tmp_path: Path,
) -> None:
    recorder = Recorder(tmp_path / "record", BEGINNING, Serials(0))
    with structlog.testing.capture_logs() as logs:
        recorder.record(1.0, ev.ServerLost("\udcff"), [])
        recorder.record(1.0, ev.ServerFound(), [])
    assert [each["event"] for each in logs] == ["recording.failed"]
