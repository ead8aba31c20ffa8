from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Literal

import pytest
import structlog

from clonepool.observe import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def written(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, style: Literal["auto", "console", "json"]
) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info", style)
    log = structlog.get_logger()
    log.debug("too.fine")
    log.info("server.started", pid=7)
    return stream.getvalue()


def test_elsewhere_than_on_a_terminal_a_line_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    event = json.loads(written(io.StringIO(), monkeypatch, "auto"))
    assert (event["event"], event["pid"], event["level"]) == ("server.started", 7, "info")


def test_on_a_terminal_a_line_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(Terminal(), monkeypatch, "auto")
    assert "server.started" in text
    with pytest.raises(ValueError, match=r"."):
        json.loads(text)


def test_the_style_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(written(Terminal(), monkeypatch, "json"))["pid"] == 7


def _fail_with(password: str) -> None:
    try:
        int(password.replace(password, "no number"))
    except ValueError:
        structlog.get_logger().exception("worker.failed")


@pytest.mark.parametrize("style", ["console", "json"])
def test_an_exception_is_logged_without_the_variables_of_its_frames(
    monkeypatch: pytest.MonkeyPatch, style: Literal["console", "json"]
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info", style)
    _fail_with("sec" + "ret")  # so that it does not stand in a source line that is shown
    assert "no number" in stream.getvalue()
    assert "secret" not in stream.getvalue()


def _fail_saying(text: str) -> None:
    raise ValueError(text)


def test_on_a_terminal_texts_of_others_are_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure("info", "console")
    evil = "\x1b]0;owned\x07\nforged"
    log = structlog.get_logger()
    log.warning("template.failed", reason=evil, error=ValueError(evil), pid=7, names=[evil])
    try:
        _fail_saying(evil)
    except ValueError:
        log.exception("worker.failed")
    text = stream.getvalue().replace("\x1b[0m", "")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b" not in plain
    assert "\x07" not in plain
    assert r"reason=\x1b]0;owned\x07\x0aforged" in plain
    assert "pid=7" in plain
    assert "ValueError" in plain
