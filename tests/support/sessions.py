"""What one lease does: sessions of statements, how they end, and psql that runs them."""

from __future__ import annotations

import enum
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clonepool.postgres.endpoint import Endpoint

DONE = "the session has done its part"
SECONDS = 60
HASTY = "-c lock_timeout=50ms -c statement_timeout=10s -c client_min_messages=error"
"""Sessions that stay open may block each other."""


class End(enum.Enum):
    """How a session ends."""

    LEFT = "it disconnects, and what it has not committed is rolled back"
    KILLED = "its backend is terminated"
    OPEN = "it stays, in its transaction, until the lease has ended"


class Session(NamedTuple):
    """What one session does."""

    statements: tuple[str, ...]
    end: End

    @property
    def sql(self) -> str:
        """The text that psql reads."""
        last = "SELECT pg_terminate_backend(pg_backend_pid());" if self.end is End.KILLED else ""
        return "\n".join([*self.statements, last, f"\\echo {DONE}\n"])


class Script(NamedTuple):
    """What one lease does.

    Attributes:
        sessions: one after another, those that stay open beside each other.
        only_rows: whether it defines nothing.
        together: whether all sessions work at the same time, instead of one after another.
    """

    sessions: tuple[Session, ...]
    only_rows: bool
    together: bool = False

    def __str__(self) -> str:
        """Show it to people."""
        shown = [f"-- {s.end.value}:\n" + "\n".join(s.statements) for s in self.sessions]
        return "\n".join(["-- all at the same time", *shown] if self.together else shown)


@contextmanager
def running(script: Script, psql: Path, endpoint: Endpoint, database: str) -> Iterator[None]:
    """Run all sessions; the ones that stay open are open in the block, and the caller ends them."""
    started: list[subprocess.Popen[str]] = []
    try:
        for session in script.sessions:
            started.append(_start(psql, endpoint, database))
            _tell(started[-1], session)
            if not script.together:
                _await(started[-1], session)
        if script.together:
            for process, session in zip(started, script.sessions, strict=True):
                _await(process, session)
        yield
    finally:
        for process in started:
            process.communicate(timeout=SECONDS)


def _start(psql: Path, endpoint: Endpoint, database: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [psql, "--no-psqlrc", "--quiet", "--no-password", "--output=/dev/null", "--file=-"],
        env={**os.environ, **endpoint.env(database), "PGOPTIONS": HASTY}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _tell(process: subprocess.Popen[str], session: Session) -> None:
    """Give the session its part to do."""
    assert process.stdin
    process.stdin.write(session.sql)
    process.stdin.flush()


def _await(process: subprocess.Popen[str], session: Session) -> None:
    """Wait until the session has done its part."""
    assert process.stdout
    for line in process.stdout:
        if line.strip() == DONE:
            break
    if session.end is End.LEFT:
        process.communicate(timeout=SECONDS)
