"""The soak, for as long as there is time for it: the whole one is `make soak`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.servers import ROOT

CLIENTS = 24
CI_SECONDS, LOCAL_SECONDS = 60.0, 15.0


def soak_seconds() -> float:
    """Return how long to soak: as CLONEPOOL_SOAK_SECONDS says, else by where this runs."""
    default = CI_SECONDS if os.environ.get("CI") == "true" else LOCAL_SECONDS
    return float(os.environ.get("CLONEPOOL_SOAK_SECONDS") or default)


@pytest.mark.timeout(soak_seconds() + 300)
def test_nothing_breaks_while_clients_and_server_and_daemon_are_killed() -> None:
    command = [sys.executable, "-m", "bench.soak", "--minutes", str(soak_seconds() / 60)]
    command += ["--clients", str(CLIENTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "no clone in two hands, none dirty, no answer late, nothing left behind" in done.stdout
