"""Inspects clones and reads the WAL; one round trip serves all requests of a moment.

First the former holders are locked out, then sessions are listed, then the WAL is read up to a
later position. So if a clone has no sessions, everything that was ever written to it has been read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec
import structlog

from clonepool.errors import ServerUnavailableError, StatementError
from clonepool.postgres.rewind import walinspect
from clonepool.postgres.rewind.database_facts import NO_ENTRIES, NOTHING_SHARED, DatabaseFacts
from clonepool.postgres.rewind.errors import LockOutError
from clonepool.postgres.rewind.inspection_procedure import call_procedure, create_procedure
from clonepool.postgres.rewind.settings import PLANNED_ONCE
from clonepool.postgres.rewind.shared_catalogs import SharedCatalogs
from clonepool.postgres.rewind.wal_reader import WAL_LOST, WalReader, wal_end

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clonepool.postgres.gateway import Gateway
    from clonepool.postgres.rewind.database_facts import Activity
    from clonepool.postgres.session import Session

log = structlog.get_logger()

_PREPARED = 8
"""Number of prepared statements of the session that reads."""
_WAL_REMOVED = {"58P01", "XX000", "XX001", "22023"}
"""SQLSTATEs with which reading fails when the server has removed that part of the WAL."""
_ALTER_SYSTEM_MAJOR = 17
"""First version in which leases cannot change the server's configuration file unseen by the WAL."""


class Inspection(msgspec.Struct, frozen=True):
    """A clone that was inspected.

    Attributes:
        facts: of its database.
        position: up to which the WAL was read afterwards.
    """

    facts: DatabaseFacts
    position: int


class _Request(msgspec.Struct, eq=False):
    """A clone that is to be inspected, and then the answer."""

    clone: str
    ours: int
    lock_out: str
    with_shared: bool
    follow: bool
    answer: Inspection | LockOutError | None = None


class Inspector:
    """Inspects the clones of one server.

    Args:
        gateway: the way to the server.
        major: its version.
        settings: of the session that reads.
        shared: SQL of the digest of the state that all databases share.
        is_idle: whether every clone is clean, so that what is written now need not be read.

    Attributes:
        reader: of the server's WAL.
    """

    def __init__(
        self,
        gateway: Gateway,
        major: int,
        settings: Mapping[str, str],
        shared: str = NOTHING_SHARED,
        is_idle: Callable[[], bool] = lambda: False,
    ) -> None:
        self._gateway = gateway
        self._major = major
        self._settings = {**settings, **PLANNED_ONCE}
        self._shared = shared
        self._is_idle = is_idle
        self._lock = anyio.Lock()
        self._waiting: list[_Request] = []
        self._session: Session | None = None
        self._catalogs = SharedCatalogs()
        self.reader = WalReader(major, self._catalogs)

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def inspect(
        self,
        clone: str,
        ours: int = 0,
        *,
        lock_out: str = "",
        with_shared: bool = False,
        follow: bool = False,
    ) -> Inspection:
        """Inspect a clone, and read the WAL up to now.

        Args:
            clone: its name.
            ours: process id of the daemon's own backend there; 0 for none.
            lock_out: statements that lock the former holder out; they are committed first.
            with_shared: whether to ask for the digest of the state that all databases share.
            follow: whether the clone is clean, and its touched pages are to be remembered from now
                on.

        Raises:
            LockOutError: `lock_out` was refused.
            ServerUnavailableError, StatementError: the server did not answer.
        """
        request = _Request(clone, ours, lock_out, with_shared, follow)
        self._waiting.append(request)
        try:
            async with self._lock:
                if request.answer is None:
                    await self._serve(list(self._waiting))
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
        assert request.answer is not None  # noqa: S101 - it was among those served
        if isinstance(request.answer, LockOutError):
            raise request.answer
        return request.answer

    async def catch_up(self) -> None:
        """Read the WAL up to now if there is much of it, before the server removes it.

        Raises:
            ServerUnavailableError, StatementError: the server did not answer.
        """
        async with self._lock:
            session = await self._connected()
            begin = await self.reader.locate(session)
            end = await wal_end(session)
            if end - begin > walinspect.WINDOW_BYTES:
                self.reader.give_up_if_behind(end)
                await self._serve([])

    async def _serve(self, requests: list[_Request]) -> None:
        """Answer requests, over a new connection if the old one has ended."""
        for last in (False, False, True):
            try:
                session = await self._connected()
                if requests and all(request.follow for request in requests):
                    await self._skip_idle(session)
                await self._ask(session, requests)
            except StatementError as error:
                await self.close()
                if error.sqlstate in _WAL_REMOVED and not last:
                    self.reader.lose()
                    log.warning(WAL_LOST, error=str(error))
                elif requests:
                    await self._ask_each(requests)
                    return
                else:
                    raise
            except ServerUnavailableError:
                await self.close()
                if last:
                    raise
            except BaseException:
                self._abort()
                raise
            else:
                return

    async def _skip_idle(self, session: Session) -> None:
        """Pass over what was written while every clone was clean, mostly copies of templates."""
        if self.reader.position is None or not self._is_idle():
            return
        end = await wal_end(session)
        if self._is_idle():  # no clone was leased while the server was asked
            self.reader.skip_to(end)

    async def _ask_each(self, requests: list[_Request]) -> None:
        """Inspect one clone after the other: the server refused something about one of them."""
        for request in requests:
            try:
                await self._ask(await self._connected(), [request])
            except StatementError as error:
                await self.close()
                request.answer = LockOutError(str(error), sqlstate=error.sqlstate)

    async def _ask(self, session: Session, requests: list[_Request]) -> None:
        """Answer requests in one round trip, and read the rest of the WAL in more."""
        reader, catalogs = self.reader, self._catalogs
        start = await reader.locate(session)
        followed = reader.touched_pages.followed
        clones = [each.clone for each in requests]
        answer = await call_procedure(
            session,
            lock_outs=[each.lock_out for each in requests if each.lock_out],
            clones=clones,
            ours=[each.ours for each in requests],
            start=start,
            followed=followed,
            anew=self._major < _ALTER_SYSTEM_MAJOR or not catalogs.knows(clones),
        )
        end = walinspect.parse_lsn(answer.mark)
        reader.give_up_if_behind(end)
        if reader.position is None:
            start = reader.begin_at(end)
        if answer.anew:
            catalogs.entries.clear()
        piece = walinspect.piece_of(answer.wal)
        reader.add(piece, answer.own)
        reached = end if end - start <= walinspect.WINDOW_BYTES else piece.reached
        await reader.read_on(session, start, reached, end, followed)
        if answer.anew:
            catalogs.update(answer.entries or [], answer.shared)
        self._answer(requests, {each.name: each for each in answer.activity or []}, end)
        catalogs.forget_unsettled(answer.settled, answer.begun)

    def _answer(
        self, requests: list[_Request], activities: dict[str, Activity], position: int
    ) -> None:
        for request in requests:
            activity = activities[request.clone]
            if request.follow and activity.oid:
                self.reader.touched_pages.follow(activity.oid)
            entries = self._catalogs.entries.get(request.clone, NO_ENTRIES)
            shared = self._catalogs.shared if request.with_shared else None
            request.answer = Inspection(DatabaseFacts(activity, entries, shared), position)

    async def _connected(self) -> Session:
        """Return the session that reads, a new one if need be."""
        if self._session is None or not self._session.usable:
            session = await self._gateway.connect(
                self._gateway.endpoint.maintenance,
                settings=self._settings,
                statements=_PREPARED,
            )
            try:
                await session.execute(walinspect.create_function(self._major))
                await session.execute(create_procedure(self._major, self._shared))
            except BaseException:
                session.abort()
                raise
            self._session = session
        return self._session

    def _abort(self) -> None:
        """Give the connection up: it is not known what the server is doing with it."""
        if self._session is not None:
            self._session.abort()
            self._session = None
