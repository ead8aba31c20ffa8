"""Which copy strategies a server has, and the SQL that selects each."""

from __future__ import annotations

import msgspec
import pytest

from clonepool.core.copy_choice import Strategy
from clonepool.errors import CapabilityError
from clonepool.postgres.capabilities import Capabilities
from clonepool.postgres.clones.copy_strategy import candidates, copy_options

WAL, FILES, CLONE = Strategy.WAL_LOG, Strategy.FILE_COPY, Strategy.CLONE
SERVER = Capabilities(
    version=180_000, version_text="18.0", system_identifier=1, superuser=True, max_connections=9,
    encoding="UTF8", locale="C", file_copy_methods=("copy", "clone"),
)  # fmt: skip
FIFTEEN = msgspec.structs.replace(
    SERVER, version=150_000, version_text="15.0", file_copy_methods=()
)
FOURTEEN = msgspec.structs.replace(FIFTEEN, version=140_000, version_text="14.0")


@pytest.mark.parametrize(
    ("server", "throwaway", "expected"),
    [
        (SERVER, True, (FILES, CLONE, WAL)),
        (SERVER, False, (WAL, FILES, CLONE)),
        (FIFTEEN, True, (FILES, WAL)),
        (FIFTEEN, False, (WAL, FILES)),
        (FOURTEEN, True, (FILES,)),
        (FOURTEEN, False, (FILES,)),
    ],
)
def test_the_candidates_are_what_the_server_can_do_the_likeliest_first(
    server: Capabilities, throwaway: bool, expected: tuple[Strategy, ...]
) -> None:
    assert candidates("auto", server, throwaway=throwaway) == expected
    for strategy in expected:
        assert candidates(strategy.value, server, throwaway=throwaway) == (strategy,)


@pytest.mark.parametrize(
    ("server", "wanted", "says"),
    [
        (FIFTEEN, "clone", r"PostgreSQL 15\.0 .* wal_log, file_copy"),
        (FOURTEEN, "wal_log", r"PostgreSQL 14\.0 .* file_copy"),
        (msgspec.structs.replace(SERVER, file_copy_methods=("copy",)), "clone", r"18\.0"),
    ],
)
def test_a_strategy_that_the_server_lacks_is_refused_with_a_remedy(
    server: Capabilities, wanted: str, says: str
) -> None:
    with pytest.raises(CapabilityError, match=says) as caught:
        candidates(wanted, server, throwaway=True)
    assert "auto" in caught.value.remedy


def test_each_strategy_has_its_options_and_settings() -> None:
    assert copy_options(WAL, SERVER) == ("STRATEGY wal_log", {})
    assert copy_options(FILES, SERVER) == ("STRATEGY file_copy", {"file_copy_method": "copy"})
    assert copy_options(CLONE, SERVER) == ("STRATEGY file_copy", {"file_copy_method": "clone"})
    assert copy_options(FILES, FIFTEEN) == ("STRATEGY file_copy", {})
    assert copy_options(FILES, FOURTEEN) == ("", {})
