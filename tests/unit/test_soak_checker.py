"""The checker of the soak: each rule is broken once to show that the soak would fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from soak.checker import Problem, check

if TYPE_CHECKING:
    from soak.journal import Record

AT_REST: dict[str, Any] = {
    "what": "leftovers",
    "leases": [],
    "sessions": [],
    "prepared": [],
    "strangers": [],
    "databases": {"blog": {"generations": 1, "clones": 2, "others": 0}},
    "roles": {"blog": 2},
    "templates": {"blog": {"ready": 2}},
}
NOTHING_LEFT = {"what": "processes_left", "processes": []}


def problems(*told: dict[str, Any], **needed: int) -> list[Problem]:
    """Judge these records, which a clean end follows unless they bring their own."""
    ending = [] if any(r["what"] == "leftovers" for r in told) else [AT_REST]
    records = [{"t": 1000.0, "who": "a", **r} for r in (*told, *ending, NOTHING_LEFT)]
    records.sort(key=lambda r: float(str(r["t"])))
    return check(records, grace=1.0, allowance=0.25, needed=needed).problems


def rules(*told: dict[str, Any], **needed: int) -> list[str]:
    """Return the names of the rules that these records break."""
    return [problem.rule for problem in problems(*told, **needed)]


def lease(
    who: str, t: float, *, clone: str = "cp_a", ttl: float | None = None, daemon: int = 7
) -> list[Record]:
    """Return the records of a lease `who` granted at `t`, asked for half a second before."""
    common = {"who": who, "ask": f"ask {who} {t}", "conn": f"conn {who}", "daemon": daemon}
    return [
        {"t": t - 0.5, "what": "asked", "timeout": 5.0, "ttl": ttl, **common},
        {"t": t, "what": "granted", "lease": who, "clone": clone, "ttl": ttl, **common},
    ]


def record(t: float, what: str, who: str = "a", **facts: object) -> Record:
    return {"t": t, "what": what, "who": who, **facts}


def of_lease(t: float, what: str, who: str = "a", **facts: object) -> Record:
    return record(t, what, who, lease=who, **facts)


CLEAN = [
    *lease("a", 1.0),
    of_lease(1.1, "checked", verdict="pristine"),
    of_lease(2.0, "releasing"),
    of_lease(2.1, "released"),
    *lease("b", 2.05),
    of_lease(2.2, "checked", "b", verdict="pristine"),
    record(3.0, "closing", "b", conn="conn b"),
    record(3.1, "client_ended", client="b", exit=0, expected=True),
]


def test_a_clean_log_passes() -> None:
    assert problems(*CLEAN, granted=2) == []


def test_a_clone_that_is_leased_twice_is_found() -> None:
    (found,) = problems(*lease("a", 1.0), *lease("b", 1.5), of_lease(2.0, "releasing"))
    assert found.rule == "exclusive"
    assert "cp_a was held by a until 2.000000, by b from 1.500000" in found.text
    assert {r["who"] for r in found.records} == {"a", "b"}


@pytest.mark.parametrize(
    "end",
    [
        of_lease(1.4, "releasing"),
        of_lease(1.4, "resetting"),
        of_lease(1.4, "abandoned"),
        of_lease(1.4, "crashing"),
        record(1.4, "closing", conn="conn a"),
        record(1.4, "client_ended", "runner", client="a", exit=-9, expected=True),
        record(1.4, "daemon_gone", "runner", pid=7, asked=True, exit=-9),
        record(0.4, "daemon_stopping", "runner", pid=7),
    ],
)
def test_each_end_of_a_lease_frees_its_clone(end: Record) -> None:
    assert rules(*lease("a", 1.0), end, *lease("b", 1.5, daemon=8)) == []


@pytest.mark.parametrize(
    "no_end",
    [
        record(1.4, "closing", conn="conn of another"),
        record(1.4, "daemon_gone", "runner", pid=6, asked=True, exit=0),
        record(1.0, "daemon_stopping", "runner", pid=7),
        of_lease(1.4, "checked", verdict="pristine"),
    ],
)
def test_what_ends_no_lease_frees_no_clone(no_end: Record) -> None:
    assert rules(*lease("a", 1.0), no_end, *lease("b", 1.5, daemon=8)) == ["exclusive"]


@pytest.mark.parametrize(
    "survived",
    [
        record(1.4, "closing", conn="conn a"),
        record(1.4, "crashing"),
        record(1.4, "daemon_gone", "runner", pid=7, asked=True, exit=-9),
    ],
)
def test_a_lease_with_a_ttl_outlives_connection_and_daemon(survived: Record) -> None:
    assert rules(*lease("a", 1.0, ttl=2.0), survived, *lease("b", 2.0, daemon=8)) == ["exclusive"]
    assert rules(*lease("a", 1.0, ttl=2.0), survived, *lease("b", 3.0, daemon=8)) == []


def test_a_renewed_lease_outlives_its_connection_for_the_new_time() -> None:
    renewed = [
        of_lease(1.2, "renewing", ttl=2.0),
        of_lease(1.3, "renewed", ttl=2.0),
        record(1.4, "closing", conn="conn a"),
    ]
    assert rules(*lease("a", 1.0), *renewed, *lease("b", 3.0)) == ["exclusive"]
    assert rules(*lease("a", 1.0), *renewed, *lease("b", 3.3)) == []


def test_the_clone_after_a_reset_is_held_as_the_one_before() -> None:
    reset = [
        of_lease(1.2, "resetting"),
        of_lease(1.4, "reset", clone="cp_b", conn="conn a", daemon=7),
    ]
    assert rules(*lease("a", 1.0), *reset, *lease("b", 1.5)) == []
    assert rules(*lease("a", 1.0), *reset, *lease("b", 1.5, clone="cp_b")) == ["exclusive"]


@pytest.mark.parametrize("what", ["checked", "rechecked"])
@pytest.mark.parametrize("verdict", ["dirty", "foreign", "missing", "odd"])
def test_a_dirty_grant_is_caught_while_the_lease_lasts(what: str, verdict: str) -> None:
    dirty = of_lease(1.3, what, verdict=verdict, detail={"rows": ["1", "0"]})
    (found,) = problems(*lease("a", 1.0), dirty)
    assert found.rule == "clean"
    assert found.records[-1]["detail"] == {"rows": ["1", "0"]}
    over = record(1.2, "daemon_gone", "runner", pid=7, asked=True, exit=-9)
    assert rules(*lease("a", 1.0), over, dirty) == []


def test_a_check_that_could_not_be_made_proves_nothing() -> None:
    assert rules(*lease("a", 1.0), of_lease(1.3, "checked", verdict="unchecked")) == []
    missed = rules(*lease("a", 1.0), of_lease(1.3, "checked", verdict="unchecked"), checked=2)
    assert missed == ["progress"]


def asked(answer: dict[str, Any] | None = None, *between: Record) -> list[Record]:
    """Return an acquire of half a second at 1.0, and what came of it."""
    facts: dict[str, Any] = {"ask": "x", "conn": "conn a", "daemon": 7}
    records = [record(1.0, "asked", timeout=0.5, **facts), *between]
    return records if answer is None else [*records, {"who": "a", **facts, **answer}]


def refused(t: float, **facts: object) -> dict[str, Any]:
    return {"t": t, "what": "refused", "code": "acquire_timeout", **facts}


def test_a_late_answer_is_caught() -> None:
    assert rules(*asked(refused(1.7))) == []
    (found,) = problems(*asked(refused(1.8)))
    assert found.rule == "deadline"
    assert "0.300 s past the timeout of 0.500 s" in found.text


def test_a_late_grant_is_caught_too() -> None:
    grant = {"t": 1.8, "what": "granted", "lease": "l", "clone": "cp_a", "ttl": None}
    assert rules(*asked(grant)) == ["deadline"]


def test_no_answer_at_all_is_caught() -> None:
    assert rules(*asked()) == ["deadline"]
    assert rules(*asked(), record(1.2, "closing", conn="conn a")) == []
    assert rules(*asked(), record(1.2, "crashing")) == []


def test_a_daemon_that_was_away_and_a_machine_that_hung_are_excuses() -> None:
    frozen = [
        record(1.1, "daemon_freezing", "runner", pid=7),
        record(1.4, "daemon_thawed", "runner", pid=7),
    ]
    assert rules(*asked(refused(1.9), *frozen)) == []
    assert rules(*asked(refused(2.1), *frozen)) == ["deadline"]
    stall = record(1.5, "stall", "runner", since=1.2, seconds=0.3)
    assert rules(*asked(refused(1.9), stall)) == []
    assert rules(*asked(refused(1.9), *frozen, stall)) == []
    assert rules(*asked(refused(2.2), *frozen, stall)) == ["deadline"], "an excuse counts once"
    assert rules(*asked(refused(1.9, delayed=0.2))) == []
    earlier = record(0.9, "stall", "runner", since=0.5, seconds=0.4)
    assert rules(*asked(refused(1.9), earlier)) == ["deadline"]


@pytest.mark.parametrize(
    "leftover",
    [
        {"leases": [{"database": "cp_a"}]},
        {"sessions": ["cp_a soak-x idle"]},
        {"prepared": ["x"]},
        {"strangers": ["cp_soak_what"]},
        {"databases": {"blog": {"generations": 1, "clones": 3, "others": 0}}},
        {"databases": {"blog": {"generations": 1, "clones": 1, "others": 0}}},
        {"databases": {"blog": {"generations": 2, "clones": 2, "others": 0}}},
        {"databases": {"blog": {"generations": 1, "clones": 2, "others": 1}}},
        {"roles": {"blog": 3}},
        {"roles": {}},
        {"roles": {"blog": 1}},
    ],
)
def test_a_leftover_is_caught(leftover: dict[str, Any]) -> None:
    assert rules({**AT_REST, **leftover}) == ["leftovers"]


def test_a_process_that_is_left_is_caught() -> None:
    assert rules({"what": "processes_left", "processes": [[1, "postgres"]]}) == ["leftovers"]


def test_a_run_without_a_check_of_leftovers_does_not_pass() -> None:
    found = check([], grace=1.0, allowance=0.25, needed={}).problems
    assert [problem.rule for problem in found] == ["leftovers"]


def test_a_run_in_which_little_happened_proves_nothing() -> None:
    (found,) = problems(*CLEAN, **{"granted": 3, "checked:pristine": 2})
    assert found.text == "granted: 2, at least 3 are needed"


def test_a_lease_that_was_taken_away_is_caught() -> None:
    denied = [of_lease(1.2, "releasing"), of_lease(1.3, "release_refused", code="not_your_lease")]
    assert rules(*lease("a", 1.0), *denied) == ["kept"]
    assert rules(*lease("a", 1.0, ttl=0.7), *denied) == []
    killed = record(1.1, "daemon_gone", "runner", pid=7, asked=True, exit=-9)
    assert rules(*lease("a", 1.0), killed, *denied) == []
    assert rules(*lease("a", 1.0, ttl=5.0), killed, *denied) == ["kept"]


@pytest.mark.parametrize(
    ("mistake", "rule"),
    [
        (record(1.0, "stale_accepted"), "tokens"),
        (record(1.0, "stale_refused", code="internal_error"), "tokens"),
        (record(1.0, "refused", code="internal_error"), "refusals"),
        (record(1.0, "daemon_gone", pid=7, asked=False, exit=1), "alive"),
        (record(1.0, "daemon_gone", pid=7, asked=True, exit=1), "alive"),
        (record(1.0, "client_ended", client="a", exit=1, expected=False), "clients"),
        (record(1.0, "daemon_error", line="Traceback"), "mistakes"),
        (record(1.0, "broken", why="no rest"), "soak"),
    ],
)
def test_what_is_wrong_by_itself_is_caught(mistake: Record, rule: str) -> None:
    assert rules(mistake) == [rule]


def test_a_token_that_is_given_twice_is_caught() -> None:
    first, second = lease("a", 1.0, clone="cp_a"), lease("b", 1.2, clone="cp_b")
    told = [{**r, "token": "same"} for r in (*first, *second)]
    assert rules(*told) == ["tokens"]
