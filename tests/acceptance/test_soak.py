"""A short soak, until each of its events has happened; `make soak` runs for minutes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support import lanes
from support.servers import ROOT

CLIENTS = 16
SECONDS = lanes.rounds(standard=10, slow=120)
"""The least duration; a busy machine takes longer until enough has happened."""


@pytest.mark.long
@pytest.mark.timeout(6 * SECONDS + 480)
def test_nothing_breaks_while_clients_and_server_and_daemon_are_killed() -> None:
    command = [sys.executable, "-m", "soak", "--minutes", str(SECONDS / 60)]
    command += ["--clients", str(CLIENTS)]
    places = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "no clone leased twice, none dirty, no answer late, nothing left behind" in done.stdout
