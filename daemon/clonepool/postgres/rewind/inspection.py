"""Looks at returned clones and reads the log, for all that ask at the same time in one round trip.

The order is what makes the answer good: first the former holders are locked out, then it is asked
who is connected, then the log is read up to after that. So of a clone to which nobody is connected,
everything that was ever written to it has been read. A procedure does it, because it may commit in
between: what locks out counts from then on, and what it asks next is seen anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import structlog

from clonepool.errors import ServerUnavailableError, StatementError
from clonepool.postgres.rewind import walinspect
from clonepool.postgres.rewind.database_facts import (
    BUSY,
    NO_ENTRIES,
    NOTHING_SHARED,
    Entries,
    Facts,
    Presence,
    entries_sql,
    presence_sql,
)
from clonepool.postgres.rewind.errors import LockOutError
from clonepool.postgres.rewind.settings import PLANNED_ONCE
from clonepool.postgres.rewind.touched_pages import TouchedPages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clonepool.postgres.gateway import Gateway, Session

log = structlog.get_logger()

_STATEMENTS = 8
_LOOK = """\
CREATE PROCEDURE pg_temp.clonepool_look(first_of_all text[], clones text[], ours int[],
    start pg_lsn, followed int8[], anew bool, INOUT answer text) LANGUAGE plpgsql AS $look$
DECLARE
    one text;
    own xid;
    over pg_snapshot;
    busy int[];
    presence json;
    mark pg_lsn;
    told json;
    entries json;
    shared text;
BEGIN
    PERFORM set_config('lock_timeout', '100ms', true);
    FOREACH one IN ARRAY first_of_all LOOP
        EXECUTE one;
    END LOOP;
    own := pg_current_xact_id_if_assigned()::xid;
    COMMIT;
    busy := ({busy});
    presence := ({presence});
    {mark}
    SELECT json_agg(t), anew OR mark > start + {window}::numeric OR bool_or(t.database = 0 AND
               EXISTS (SELECT FROM unnest(t.pages) AS x WHERE x IS DISTINCT FROM own::text::int8))
      INTO told, anew FROM ({told}) AS t;
    over := pg_current_snapshot();
    IF anew THEN
        entries := ({entries});
        shared := ({shared});
    END IF;
    answer := json_build_object('presence', presence, 'mark', mark, 'told', told, 'anew', anew,
                                'own', own::text::int8, 'entries', entries, 'shared', shared,
                                'settled', pg_snapshot_xmin(over)::text::int8,
                                'begun', pg_snapshot_xmax(over)::text::int8);
END
$look$
"""
_OF_THE_LOG = {"58P01", "XX000", "XX001", "22023"}
"""SQLSTATEs of what is said of a log that is not there any more."""
_ALTER_SYSTEM_MAJOR = 17
"""Before this version leases may write into the server's configuration, which is in no log."""
_CALL = "CALL pg_temp.clonepool_look($1, $2, $3, $4::text::pg_lsn, $5, $6, NULL)"


class Look(msgspec.Struct, frozen=True):
    """A clone, looked at.

    Attributes:
        facts: of the database itself.
        upto: position in the log up to which it was read afterwards.
    """

    facts: Facts
    upto: int


class _Request(msgspec.Struct, eq=False):
    name: str
    ours: int
    first: str
    at_server: bool
    follow: bool
    answer: Look | LockOutError | None = None


class _Said(msgspec.Struct, frozen=True):
    """What the procedure says, in JSON.

    Attributes:
        presence: of the clones.
        mark: the position in the log up to which it may be read.
        told: what it says, up to there or a window far.
        anew: whether anybody but the procedure wrote to shared catalogs, or that is not known.
        own: the transaction that locked out, by the last 32 bits of its number.
        settled: transactions before this one were over before shared catalogs were asked.
        begun: transactions from this one on had not begun then.
        entries: if so, what shared catalogs say of the clones.
        shared: and what stands for the server as a whole.
    """

    presence: list[Presence] | None
    mark: str
    told: list[dict[str, Any]]
    anew: bool
    own: int | None
    settled: int
    begun: int
    entries: list[Entries] | None
    shared: str | None


class Inspector:
    """The one reader of one server's log.

    Args:
        gateway: the way to the server.
        major: its version.
        settings: of the session that reads.
        shared: SQL of one text that stands for the server as a whole.
        is_idle: whether nobody holds a clone, nor did since it was last clean.
    """

    def __init__(
        self,
        gateway: Gateway,
        major: int,
        settings: Mapping[str, str],
        shared: str = NOTHING_SHARED,
        is_idle: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ledger = TouchedPages()
        self._gateway = gateway
        self._major = major
        self._settings = {**settings, **PLANNED_ONCE}
        self._shared = shared
        self._is_idle = is_idle
        self._lock = anyio.Lock()
        self._waiting: list[_Request] = []
        self._session: Session | None = None
        self._position: int | None = None
        self._begin = 0
        self._entries: dict[str, Entries] = {}
        self._server: str | None = None
        self._writers: set[int] = set()
        self._unread_until: int | None = None

    def lose(self) -> None:
        """Begin anew where the log is next: what was written until then is not known."""
        self._position = None
        self._forget_entries()

    def _forget_entries(self) -> None:
        """Remember nothing of shared catalogs until all are over who may have written to them."""
        self._entries.clear()
        self._unread_until = None

    def covers(self, position: int) -> bool:
        """Say whether all of the log was read from that position on."""
        return self._position is not None and position >= self._begin

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def look(
        self,
        name: str,
        ours: int = 0,
        *,
        first: str = "",
        at_server: bool = False,
        follow: bool = False,
    ) -> Look:
        """Look at a clone, and read the log up to now.

        Args:
            name: the clone's.
            ours: process id of our own backend there, 0 for none.
            first: statements that lock out who had it; they are committed before anything else.
            at_server: whether to look at the server as a whole, too.
            follow: whether the clone is clean, and the ledger is to follow it from now on.

        Raises:
            LockOutError: `first` was refused.
            ServerUnavailableError, StatementError: the server does not say.
        """
        request = _Request(name, ours, first, at_server, follow)
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
        """Read the log up to now, if there is much of it: before the server throws it away.

        Raises:
            ServerUnavailableError, StatementError: the server does not say.
        """
        async with self._lock:
            session = await self._open()
            begin = await self._locate(session)
            now = await _now(session)
            if now - begin > walinspect.WINDOW_BYTES:
                self._give_up_behind(now)
                await self._serve([])

    async def _serve(self, requests: list[_Request]) -> None:
        """Answer these, over a new connection if the one there was is gone."""
        for last in (False, False, True):
            try:
                session = await self._open()
                if requests and all(request.follow for request in requests):
                    await self._skip(session)
                await self._ask(session, requests)
            except StatementError as error:
                await self.close()
                if error.sqlstate in _OF_THE_LOG and not last:
                    self.lose()
                    log.warning("log.lost", error=str(error))
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

    async def _ask_each(self, requests: list[_Request]) -> None:
        """Look at one clone after the other: something about one of them was refused."""
        for request in requests:
            try:
                await self._ask(await self._open(), [request])
            except StatementError as error:
                await self.close()
                request.answer = LockOutError(str(error), sqlstate=error.sqlstate)

    def _abort(self) -> None:
        """Give the connection up: what the server does with it now is not known."""
        if self._session is not None:
            self._session.abort()
            self._session = None

    async def _open(self) -> Session:
        if self._session is None or not self._session.usable:
            session = await self._gateway.connect(
                self._gateway.endpoint.maintenance,
                settings=self._settings,
                statements=_STATEMENTS,
            )
            try:
                await session.execute(walinspect.create_function(self._major))
                await session.execute(self._procedure())
            except BaseException:
                session.abort()
                raise
            self._session = session
        return self._session

    async def _locate(self, session: Session) -> int:
        """Return from where on the log is to be read."""
        if self._position is None:
            self._position = self._begin = await _now(session)
        return self._position

    def _give_up_behind(self, now: int) -> None:
        """Begin anew where reading all that there is would take too long."""
        if self._position is not None and now - self._position > walinspect.MOST_BEHIND_BYTES:
            log.warning("log.lost", error=f"{now - self._position} bytes of it were not read yet")
            self.lose()

    async def _skip(self, session: Session) -> None:
        """Pass over what was written while nobody held a clone: copies of templates, most of it.

        Whoever got one since is seen in that somebody holds one.
        """
        if self._position is None or not self._is_idle():
            return
        now = await _now(session)
        if self._is_idle():
            self._forget_entries()
            self._position = max(self._position, now)

    async def _ask(self, session: Session, requests: list[_Request]) -> None:
        start = await self._locate(session)
        followed = self.ledger.followed
        text = await session.value(
            _CALL,
            [each.first for each in requests if each.first],
            [each.name for each in requests],
            [each.ours for each in requests],
            walinspect.lsn(start),
            followed,
            self._major < _ALTER_SYSTEM_MAJOR
            or not all(each.name in self._entries for each in requests),
        )
        said = msgspec.json.decode(text, type=_Said)
        upto = walinspect.read_lsn(said.mark)
        self._give_up_behind(upto)
        if self._position is None:
            self._position = self._begin = start = upto
        if said.anew:
            self._entries.clear()
        told = walinspect.read_told(said.told)
        self._enter(told, said.own)
        reached = upto if upto - start <= walinspect.WINDOW_BYTES else told.reached
        await self._read_on(session, start, reached, upto, followed)
        if said.anew:
            self._entries = {each.name: each for each in said.entries or []}
            self._server = said.shared
        self._answer(requests, {each.name: each for each in said.presence or []}, upto)
        self._forget_unsettled(said)

    async def _read_on(
        self, session: Session, start: int, reached: int | None, upto: int, followed: list[int]
    ) -> None:
        """Read what is left of the log up to a position, a window at a time.

        A record that goes beyond a window is not told. So the next window begins where the last
        record ends that was; where there was none it goes on to the end, and where little of it
        mattered it is twice as large.
        """
        window, few = walinspect.WINDOW_BYTES, True
        while True:
            if reached is not None and reached > start:
                start = reached
                window = (
                    min(2 * window, walinspect.LARGEST_WINDOW_BYTES)
                    if few
                    else walinspect.WINDOW_BYTES
                )
            elif start < upto:
                window = upto - start  # one record, larger than a window
            self._position = start
            if start >= upto:
                return
            stop = min(start + window, upto)
            told = await walinspect.read_piece(session, self._major, start, stop, followed)
            self._enter(told)
            few = sum(len(each.pages) for each in told.written) <= walinspect.FEW_PAGES
            reached = upto if stop == upto else told.reached

    def _enter(self, told: walinspect.Told, own: int | None = None) -> None:
        """Take in a piece of the log."""
        self.ledger.enter(told.written)
        self._writers |= told.writers - {own}

    def _forget_unsettled(self, said: _Said) -> None:
        """Remember what shared catalogs said only if nobody who wrote to them may yet commit.

        The log tells when a page is written, and names none when that is committed.
        """
        if self._unread_until is None:
            self._unread_until = said.begun
        over = said.settled
        self._writers = {each for each in self._writers if not 0 < (over - each) % 2**32 < 2**31}
        if self._writers or over < self._unread_until:
            self._entries.clear()

    def _answer(self, requests: list[_Request], found: dict[str, Presence], upto: int) -> None:
        for request in requests:
            presence = found[request.name]
            if request.follow and presence.oid:
                self.ledger.follow(presence.oid)
            entries = self._entries.get(request.name, NO_ENTRIES)
            shared = self._server if request.at_server else None
            request.answer = Look(Facts(presence, entries, shared), upto)

    def _procedure(self) -> str:
        stop = f"least(mark, start + {walinspect.WINDOW_BYTES}::numeric)"
        return _LOOK.format(
            busy=BUSY,
            presence=presence_sql("clones", "ours", "busy"),
            entries=entries_sql("clones"),
            shared=f"SELECT {self._shared}",
            window=walinspect.WINDOW_BYTES,
            mark=walinspect.mark_plpgsql(self._major, "mark"),
            told=walinspect.told_sql(self._major, "start", stop, "followed"),
        )


async def _now(session: Session) -> int:
    """Return up to where the log is written."""
    return walinspect.read_lsn(await session.value("SELECT pg_current_wal_insert_lsn()::text"))
