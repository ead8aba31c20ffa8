from __future__ import annotations

import io
import json
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
