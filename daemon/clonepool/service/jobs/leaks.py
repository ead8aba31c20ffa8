"""What a lease left behind: sessions on its clone, and changes of the server as a whole.

The sessions are only named here, for the client that released the lease. The changes of the server
are undone as well, and no clone is granted until they are.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import structlog

from clonepool.core.events import GrantsHeld, GrantsResumed
from clonepool.errors import ServerUnavailableError
from clonepool.postgres.rewind.stray_sessions import stray_sessions
from clonepool.postgres.roles import Rights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.postgres.rewind.inspection import Inspection
    from clonepool.postgres.rewind.rewinder import Rewinder
    from clonepool.service.credentials import Credentials
    from clonepool.service.jobs.base import JobTools
    from clonepool.service.server_changes import ServerChanges

    Sessions = list[dict[str, Any]] | None
    """Sessions and changes that a lease left; None when the server did not tell."""

log = structlog.get_logger()

SESSIONS_FAILED = "clone.recycle_failed"
SERVER_LOOK_FAILED = "server.look_failed"
ANSWER_SECONDS = 2.0
"""Seconds that the answer to a release may wait for the server to name what is left."""


class Reports(Protocol):
    """Passes on what a lease left on its clone."""

    def is_awaited(self, clone: str) -> bool:
        """Say whether a client is to be told."""

    def lease_left(self, clone: str, leaked: Sessions) -> None:
        """Tell what was left."""

    def lease_kept(self, clone: str, leaked: Sessions, *, written_down: bool) -> None:
        """Tell what was left, and whether it is written down that the clone is kept."""


class Leaks:
    """Finds what leases left.

    Args:
        tools: of every job.
        credentials: tell which templates' leases are superusers.
        rewinder: tells which sessions on a clone are the daemon's own.
        server_changes: takes back what leases changed in the server as a whole.
    """

    def __init__(
        self,
        tools: JobTools,
        *,
        credentials: Credentials,
        rewinder: Rewinder,
        server_changes: ServerChanges,
    ) -> None:
        self._events = tools.events
        self._failures = tools.failures
        self._gateway = tools.gateway
        self._metrics = tools.metrics
        self._templates = tools.templates
        self._credentials = credentials
        self._rewinder = rewinder
        self._server_changes = server_changes

    def may_change_server(self, template: str) -> bool:
        """Say whether a lease of that template can change anything beyond its database."""
        ownership = self._credentials.ownership(self._templates.sections[template])
        return ownership.rights is Rights.SUPERUSER

    async def find(
        self, template: str, clone: str, seen: Inspection | None, *, sessions: bool
    ) -> Sessions:
        """Undo the changes of the server, and return what the lease left.

        Args:
            template: of the clone.
            clone: that the lease had.
            seen: what is known of the clone; None to ask the server.
            sessions: whether the sessions on the clone are to be named.
        """
        changes = await self._take_back_changes(template, clone, seen)
        if not sessions:
            return changes
        strays = await self._sessions(template, clone, seen)
        return None if strays is None else [*strays, *changes]

    async def _take_back_changes(
        self, template: str, clone: str, seen: Inspection | None
    ) -> list[dict[str, Any]]:
        """Undo what the lease changed in the server as a whole; return what that was."""
        known = self._server_changes.digest
        digest = seen.facts.shared if seen is not None else None
        if not self.may_change_server(template):
            digest = known
        changed = digest not in (None, known)
        if changed:
            self._events.handle(GrantsHeld())
        try:
            with (
                self._failures.attempt(SERVER_LOOK_FAILED, clone=clone),
                answer_within(ANSWER_SECONDS, f"the server after {clone}"),
            ):
                found = await self._server_changes.look(clone, digest)
                if found:
                    self._templates.changes_server.add(template)
                return [{"what": what} for what in found]
        finally:
            if changed:
                self._events.handle(GrantsResumed())
        return []

    async def _sessions(self, template: str, clone: str, seen: Inspection | None) -> Sessions:
        """Return the sessions that are open on the clone."""
        if seen is not None:
            return self._counted(clone, seen.facts.sessions)
        with (
            self._failures.attempt(SESSIONS_FAILED, template, subject="strays", clone=clone),
            answer_within(ANSWER_SECONDS, f"the sessions on {clone}"),
        ):
            own = self._rewinder.backend_pid(clone)
            return self._counted(clone, await stray_sessions(self._gateway, clone, own))
        return None

    def _counted(self, clone: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if found:
            self._metrics.leaked_sessions.inc(len(found))
            log.warning("clone.sessions_leaked", clone=clone, sessions=len(found))
        return found


@contextmanager
def answer_within(seconds: float, about: str) -> Iterator[None]:
    """Bound how long the server may take for an answer.

    Raises:
        ServerUnavailableError: it took longer.
    """
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise ServerUnavailableError(f"no answer about {about} in {seconds:g} s") from None
