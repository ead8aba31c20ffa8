"""Rules for the tests themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.lanes import is_slow

TESTS = Path(__file__).resolve().parents[1]
SLEEPS = {("time", "sleep"), ("anyio", "sleep"), ("asyncio", "sleep")}
REASON = "# sleeps: "
PACED = {"soak"}
"""Folders of programs that act at random moments."""


def test_nothing_sleeps_for_a_time_that_should_do() -> None:
    """A loop that polls may sleep; any other line that sleeps has a comment with the reason.

    Wait with `support.daemons.eventually`, or for an event of the code.
    """
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.glob("**/*.py"))
        if path.relative_to(TESTS).parts[0] not in PACED
        for line in unexplained_sleeps(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def unexplained_sleeps(text: str) -> list[int]:
    """Return the lines that sleep, but for loops that do nothing else and lines with a reason."""
    tree, lines = ast.parse(text), text.splitlines()
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.While) and polls(node)]
    polled = {id(call) for loop in loops for call in ast.walk(loop) if isinstance(call, ast.Call)}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and is_sleep(node)
        and id(node) not in polled
        and REASON not in lines[node.lineno - 1]
    ]


def polls(loop: ast.While) -> bool:
    """Say whether a loop only polls: it waits for a condition, and only sleeps or gives up."""
    *others, last = loop.body
    value = last.value if isinstance(last, ast.Expr) else None
    call = value.value if isinstance(value, ast.Await) else value
    sleeps = isinstance(call, ast.Call) and is_sleep(call)
    return sleeps and all(isinstance(other, ast.If | ast.Assert) for other in others)


def is_sleep(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and (function.value.id, function.attr) in SLEEPS
    )


def test_a_sleep_is_found_and_a_loop_or_a_reason_is_not() -> None:
    assert unexplained_sleeps("import time\ntime.sleep(1)\n") == [2]
    assert unexplained_sleeps("while not done():\n    time.sleep(1)\n") == []
    assert unexplained_sleeps("while not done():\n    work()\n    time.sleep(1)\n") == [3]
    assert unexplained_sleeps("time.sleep(1)  # sleeps: it is the load\n") == []


VERSIONS = [18, 17, 16, 15, 14]


@pytest.mark.parametrize("marks", [set[str](), {"long"}, {"smoke"}])
def test_what_is_slow_on_one_version_is_not_on_the_newest(marks: set[str]) -> None:
    assert not is_slow(18, VERSIONS, 15, marks)


def test_the_oldest_that_rewinds_is_tested_always_but_for_what_takes_long() -> None:
    slow = {major for major in VERSIONS if is_slow(major, VERSIONS, 15, set())}
    assert slow == {17, 16, 14}
    assert is_slow(15, VERSIONS, 15, {"long"})
    assert not any(is_slow(major, VERSIONS, 15, {"smoke"}) for major in VERSIONS)
