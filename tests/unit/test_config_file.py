from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from clonepool import config
from clonepool.observe.metrics import Metrics
from clonepool.service.failures import Failures
from clonepool.service.monitors.config_file import CHANGED, ConfigFileMonitor
from clonepool.service.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Look: TypeAlias = Callable[[], list[dict[str, object]]]

GOOD = '[templates.blog]\nsql = ["*.sql"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def warnings(file: Path) -> Look:
    """Return what looks at the file, which a daemon runs with, and returns the warnings."""
    failures = Failures(Metrics(CollectorRegistry(), ()), Resources(time.monotonic))
    monitor = ConfigFileMonitor(failures, config=config.load(file))

    def look() -> list[dict[str, object]]:
        with capture_logs() as logs:
            monitor.look()
        assert all(each["event"] == CHANGED and each["path"] == str(file) for each in logs)
        return [dict(each) for each in logs]

    return look


def test_a_file_that_is_as_it_was_is_not_told_of(file: Path, warnings: Look) -> None:
    assert warnings() == []
    file.write_text(f"# a comment\n{GOOD}")
    assert warnings() == []


def test_an_edit_is_told_of_once(file: Path, warnings: Look) -> None:
    file.write_text(f"{GOOD}min_ready = 3\n")
    (warning,) = warnings()
    assert "restart the daemon" in str(warning["remedy"])
    assert warnings() == []
    file.write_text(f"{GOOD}min_ready = 40\n")
    assert len(warnings()) == 1


def test_an_edit_with_which_no_daemon_would_start_says_so(file: Path, warnings: Look) -> None:
    file.write_text(f"{GOOD}min_redy = 3\n")
    (warning,) = warnings()
    assert "templates.blog.min_redy: unknown key" in str(warning["error"])
    assert "correct it" in str(warning["remedy"])
    file.write_text(f"{GOOD}min_ready = 3\n")
    assert len(warnings()) == 1


def test_a_file_that_is_away_for_a_moment_is_not_told_of(file: Path, warnings: Look) -> None:
    file.unlink()
    assert warnings() == []
    file.write_text(GOOD)
    assert warnings() == []


def test_a_shortage_of_files_is_no_edit(
    file: Path, warnings: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file_left(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    file.write_text(f"{GOOD}min_ready = 3\n")
    with monkeypatch.context() as short:
        short.setattr(Path, "read_text", no_file_left)
        with pytest.raises(OSError, match="Too many open files"):
            warnings()
    assert len(warnings()) == 1
