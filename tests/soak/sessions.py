"""A client's sessions on its clone: they check, change and check again, and return verdicts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

from soak import changes
from soak.facts import Facts, difference, read_facts

if TYPE_CHECKING:
    from collections.abc import Coroutine

_SECONDS = 8.0
_AWAY = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
)
_GONE = (
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)

Verdict = tuple[str, Any]


class CloneSessions:
    """The sessions of one lease on one clone. Methods return verdicts and raise nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lease: str, url: str, name: str) -> None:
        self._loop = loop
        self._lease = lease
        self._url = url
        self._database = name
        self._name = f"soak-{lease}"
        self._session: asyncpg.Connection | None = None
        self._others: list[asyncpg.Connection] = []
        self._left: Facts = {}

    def check(self, expected: Facts) -> Verdict:
        """Say whether the clone is what its template is: pristine, dirty, missing or unchecked."""
        return self._run(self._check(expected))

    def mark(self, chosen: list[str], *, second_session: bool) -> Verdict:
        """Change the clone, on the session of the check: marked or unmarked."""
        return self._run(self._mark(chosen, second_session=second_session))

    def recheck(self, *, anew: bool) -> Verdict:
        """Say whether it is unchanged since: mine, foreign, missing or unchecked."""
        return self._run(self._recheck(anew=anew))

    def leave(self) -> None:
        """Close the sessions, whatever state they are in."""
        for session in (self._session, *self._others):
            if session is not None:
                session.terminate()
        self._session, self._others = None, []
        self._loop.run_until_complete(asyncio.sleep(0))

    def _run(self, work: Coroutine[Any, Any, Verdict]) -> Verdict:
        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, _SECONDS))
        except _GONE as error:
            return "missing", repr(error)
        except _AWAY as error:
            return "unchecked", repr(error)
        except asyncpg.PostgresError as error:
            return "odd", repr(error)

    async def _connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            self._url,
            timeout=_SECONDS,
            statement_cache_size=0,
            server_settings={"application_name": self._name},
        )

    async def _check(self, expected: Facts) -> Verdict:
        self._session = await self._connect()
        found = difference(await read_facts(self._session, self._name), expected)
        return ("dirty", found) if found else ("pristine", None)

    async def _mark(self, chosen: list[str], *, second_session: bool) -> Verdict:
        if self._session is None:
            return "unmarked", "there is no session"
        await changes.mark(self._session, self._lease, self._database, chosen)
        if second_session and "prepared" not in chosen:
            other = await self._connect()
            self._others.append(other)
            await other.execute("BEGIN; LOCK TABLE blog.tb_user IN ROW EXCLUSIVE MODE")
        self._left = await read_facts(self._session, self._name, lasting=True)
        return "marked", chosen

    async def _recheck(self, *, anew: bool) -> Verdict:
        if anew or self._session is None or self._session.is_closed():
            if self._session is not None:
                self._session.terminate()
            self._session = await self._connect()
        try:
            marks = await changes.read_marks(self._session)
        except asyncpg.UndefinedTableError:
            return "foreign", "the mark is gone"
        if marks != [self._lease]:
            return "foreign", marks
        found = difference(await read_facts(self._session, self._name, lasting=True), self._left)
        return ("foreign", found) if found else ("mine", None)


async def reference(url: str) -> Facts:
    """Return the contents of an unchanged clone."""
    session = await asyncpg.connect(url)
    try:
        return await read_facts(session, "")
    finally:
        with contextlib.suppress(OSError):
            await session.close()
