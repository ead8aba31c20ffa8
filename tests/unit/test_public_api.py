"""The public Python API: its names, its types, and what importing it costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import clonepool
import clonepool.client
from clonepool import errors
from support.servers import ROOT

EXAMPLE = ROOT / "tests" / "support" / "public_api.py"
WRONG = """\
import clonepool

client = clonepool.Client()
client.lease("blog", timout=5)  # call-arg
client.lease("blog", timeout="5")  # arg-type
clonepool.lease(7)  # arg-type
client.lease("blog").url + 1  # operator
clonepool.NoSuchError  # attr-defined
"""
"""Mistakes of a user's, each with the code of the error that mypy must report in its line."""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """Return the lines and codes of mypy's errors in the example and in the wrong program."""
    directory = tmp_path_factory.mktemp("typed")
    wrong = directory / "wrong.py"
    wrong.write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    done = subprocess.run(
        [*command, "--cache-dir", str(directory / "cache"), str(EXAMPLE), str(wrong)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MYPYPATH": str(ROOT / "daemon")},
    )
    assert done.returncode in {0, 1}, done.stderr
    found: dict[str, list[tuple[str, str]]] = {EXAMPLE.stem: [], wrong.stem: []}
    for line in done.stdout.splitlines():
        if ": note: " in line:
            continue
        error = re.fullmatch(r"(.+?):(\d+): error: .*\[([a-z-]+)\]", line)
        assert error, line
        found[Path(error[1]).stem].append((error[2], error[3]))
    return found


def test_a_program_that_uses_every_public_name_passes_strict_type_checks(
    checked: dict[str, list[tuple[str, str]]],
) -> None:
    assert checked[EXAMPLE.stem] == []


def test_wrong_uses_of_the_public_names_fail_type_checks(
    checked: dict[str, list[tuple[str, str]]],
) -> None:
    wanted = [
        (str(number), line.partition("# ")[2])
        for number, line in enumerate(WRONG.splitlines(), start=1)
        if "# " in line
    ]
    assert checked["wrong"] == wanted


def test_the_example_uses_every_public_name() -> None:
    used = set(re.findall(r"clonepool\.(\w+)", EXAMPLE.read_text()))
    assert set(clonepool.__all__) <= used


def test_every_name_that_is_promised_is_there() -> None:
    for module in (clonepool, clonepool.client):
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name), name
    assert set(clonepool.client.__all__) <= set(clonepool.__all__)


def test_every_error_that_a_client_can_raise_is_at_hand() -> None:
    of_the_client = {
        errors.ClonepoolError,
        errors.DaemonNotFoundError,
        errors.ConnectionLostError,
        errors.ClientClosedError,
    }
    for error in {*errors.BY_CODE.values(), *of_the_client}:
        assert error.__name__ in clonepool.__all__, error
        assert getattr(clonepool, error.__name__) is error


def test_importing_it_loads_nothing_but_the_standard_library_and_no_slow_part_of_it() -> None:
    program = (
        "import sys; before = set(sys.modules); import clonepool;"
        " print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "daemon")},
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - {"clonepool"} <= sys.stdlib_module_names
    slow = {"asyncio", "dataclasses", "inspect", "logging", "subprocess", "typing", "urllib"}
    assert not loaded & slow
