"""The daemon of the soak, on its embedded server, and queries to that server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from clonepool.client import Client
from clonepool.errors import ClonepoolError
from clonepool.postgres.embedded.cluster import SUPERUSER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soak.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 1.0
TENANT_ROLE = "soak_tenant"
TEMPLATES = ("blog", "tenant")
"""One whose leases log in as superusers, and one whose leases log in as an ordinary role."""
CONFIG = f"""\
instance = "soak"
[embedded]
settings = {{ max_prepared_transactions = "60" }}
[http]
listen = ""
[pool]
max_clones = 12
stop_grace = {GRACE_SECONDS}
[templates.blog]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 4
max_clones = 10
max_kept = 1
keep_for = 2.0
[templates.tenant]
sql = ["{ROOT}/examples/blog/*.sql"]
min_ready = 2
max_clones = 6
max_kept = 1
keep_for = 2.0
rights = "owner"
owner = "{TENANT_ROLE}"
"""
START_SECONDS, STOP_SECONDS = 90.0, 60.0
_POLL_SECONDS = 0.02
_SQL_SECONDS = 10.0


class SoakDaemon:
    """Starts, stops, kills and freezes the daemon; writes each of these to the journal."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self.directory = directory
        self.socket = directory / "soak.sock"
        self.state = directory / "state"
        self.log = directory / "daemon.log"
        self._config = directory / "soak.toml"
        self._config.write_text(CONFIG)
        self._journal = journal
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The daemon's pid; it must have been started."""
        if self.process is None:
            raise RuntimeError("the daemon was not started")
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it has started.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        command = [sys.executable, "-m", "clonepool", "serve", "--config", str(self._config)]
        command += ["--socket", str(self.socket), "--state", str(self.state)]
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
                raise RuntimeError(f"no start: exit {self.process.poll()}, it said:\n{said}")
            time.sleep(_POLL_SECONDS)
        self._journal.write("daemon_up", pid=self.pid)

    def end(self, number: signal.Signals) -> None:
        """Send SIGTERM or SIGKILL and wait until it is gone."""
        what = "daemon_killing" if number is signal.SIGKILL else "daemon_stopping"
        if self.process is None or self.process.poll() is not None:
            return
        self._journal.write(what, pid=self.pid)
        self.process.send_signal(number)
        try:
            exit_code: int | str = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            exit_code = f"nothing within {STOP_SECONDS:g} s of {number.name}"
        self._journal.write("daemon_gone", pid=self.pid, asked=True, exit=exit_code)

    def freeze(self, seconds: float) -> None:
        """Suspend its process for some seconds."""
        self._journal.write("daemon_freezing", pid=self.pid, seconds=seconds)
        os.kill(self.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(self.pid, signal.SIGCONT)
            self._journal.write("daemon_thawed", pid=self.pid)

    def restart_if_ended(self) -> None:
        """If it ended by itself, record that and start it again."""
        if self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            self._journal.write("daemon_gone", pid=self.pid, asked=False, exit=code)
            self.start()

    def listens(self) -> bool:
        """Say whether it has started: it listens earlier, but answers only then."""
        try:
            self.ask("ping")
        except (ClonepoolError, OSError):
            return False
        return True

    def ask(self, method: str, **params: object) -> Any:
        """Call one method over a connection of its own."""
        with Client(str(self.socket), name="soak") as client:
            return client.call(method, **params)

    def storage(self) -> Path:
        """Return the directory of the embedded server."""
        return Path(json.loads((self.state / "cluster.json").read_text())["root"])

    def postmaster(self) -> int:
        """Return the pid of the postmaster."""
        return int((self.storage() / "data" / "postmaster.pid").read_text().splitlines()[0])

    def queries(self, *statements: str) -> Sequence[list[asyncpg.Record]]:
        """Run queries on the server as the daemon's role, in a session of their own."""
        return asyncio.run(self._query(statements))

    async def _query(self, statements: Sequence[str]) -> list[list[asyncpg.Record]]:
        session = await asyncpg.connect(
            host=str(self.storage() / "socket"),
            user=SUPERUSER,
            database="postgres",
            timeout=_SQL_SECONDS,
            command_timeout=_SQL_SECONDS,
            server_settings={"application_name": "soak runner"},
        )
        try:
            return [await session.fetch(statement) for statement in statements]
        finally:
            session.terminate()
