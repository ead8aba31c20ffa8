from __future__ import annotations

from typing import TYPE_CHECKING

from clonepool import paths
from clonepool.cli import locations

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_named_socket_is_the_only_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.SOCKET_VARIABLE, "/from/env")
    assert paths.socket_candidates("/named") == ["/named"]
    assert paths.socket_candidates() == ["/from/env"]


def test_otherwise_the_users_place_comes_before_the_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(paths.SOCKET_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    first, second, third = paths.socket_candidates()
    assert (first, second) == (
        "/run/user/7/clonepool/clonepool.sock",
        "/run/clonepool/clonepool.sock",
    )
    assert "clonepool-" in third


def test_the_state_directory_is_the_one_that_systemd_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/x")
    assert str(locations.default_state_dir()) == "/var/lib/x"


def test_the_shipped_configuration_exists() -> None:
    assert locations.shipped_config().exists()


def test_a_strangers_directory_in_tmp_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    own = tmp_path / "own"
    own.mkdir()
    assert paths.is_trusted(str(own / "s"))
    monkeypatch.setattr("os.geteuid", lambda: own.stat().st_uid + 1)
    if own.stat().st_uid != 0:
        assert not paths.is_trusted(str(own / "s"))
