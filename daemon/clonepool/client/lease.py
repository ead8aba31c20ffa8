"""A lease, as whoever holds it sees it."""

from __future__ import annotations

import contextlib

from clonepool.client.holding import Holding
from clonepool.errors import (
    BadRequestError,
    ClientClosedError,
    ClientLimitError,
    ClonepoolError,
    ConnectionLostError,
    LeaseBusyError,
    NotYourLeaseError,
    ShuttingDownError,
)

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from clonepool.client.connection import Connection
    from clonepool.client.sync import Client


def wish(template: str, **options: Any) -> dict[str, Any]:
    """Return the parameters of an acquire; what is not wished for is left out."""
    wishes = {key: None if value is False else value for key, value in options.items()}
    return {"template": template, **wishes}


class Lease(Holding):
    """The exclusive right to one clone: until released, expired, or its client is closed.

    A lease that is neither and that nobody refers to any more is released as well, with a
    ResourceWarning that names it. One with a TTL is not: whoever knows its token has it.

    A release or a reset that is interrupted, by Ctrl-C say, ends the lease all the same.

    Attributes:
        url: libpq URL of the clone.
        database: the clone's name.
        env: `DATABASE_URL` and the `PG*` variables.
        template: what it is a clone of.
        generation: which state of the template.
        host: a name, an address, or the directory of a Unix socket.
        port: the server's.
        user: to log in as.
        password: of that user.
        source: `ready` when a clone was there, `waited` when one had to become ready.
        waited_seconds: how long that took.
        expires_in_seconds: how long it lasts; None when time does not end it.
        token: names the lease; whoever knows it can end it.
    """

    expires_in_seconds: float | None

    @classmethod
    def granted(
        cls, client: Client, connection: Connection, told: dict[str, Any], *, lasts: bool
    ) -> Lease:
        """Make one of the daemon's answer.

        Args:
            client: by which it is renewed, reset and released.
            connection: over which it was granted.
            told: the answer.
            lasts: whether it outlives that connection.
        """
        lease = cls(client, connection)
        lease._take(told)
        lease._held = not lasts
        return lease

    def __repr__(self) -> str:
        return f"<Lease {self.database}>"

    def release(self, *, keep: bool = False, report: bool = False) -> list[dict[str, Any]] | None:
        """Give the clone back, at once: what the lease left is told later, by a LeakWarning.

        Args:
            keep: set the clone aside for a person, for as long as the template's `keep_for`. Waits
                until that is written down, and reports.
            report: wait until it is known what the lease left. By then what it changed in the
                server as a whole has been taken back, where that can be.

        Interrupted before it is answered, the lease ends all the same.

        Returns:
            With `keep` or `report`, the sessions that were still open on the clone and are being
            ended, each with pid, application_name, state and query, and what was changed in the
            server, in `what`; None when the server could not be asked. Otherwise None: it was not
            waited for.

        Raises:
            NotYourLeaseError: it has ended before.
        """
        params = {"lease": self.token, "keep": keep or None, "report": report or None}
        ended = self._end("release", params)
        leaked: list[dict[str, Any]] | None = ended["leaked"]
        return leaked

    def renew(self, ttl: float | None = None) -> float | None:
        """Let the lease last `ttl` seconds from now, or as long as it was given at first.

        Returns:
            Seconds that it lasts now, which max_lease may bound; None when time does not end it.

        Raises:
            NotYourLeaseError: it has ended.
            ServerUnavailableError: it could not be written down; it ends when it did before.
        """
        held, self._held = self._held, self._held and ttl is None
        try:
            renewed = self._client.call("renew", lease=self.token, ttl=ttl)
        except ConnectionLostError:
            raise  # it may have been renewed
        except ClonepoolError:
            self._held = held
            raise
        seconds: float | None = renewed["expires_in_seconds"]
        self.expires_in_seconds = seconds
        return seconds

    def reset(self, *, timeout: float | None = None) -> None:
        """Make the clone clean again; `url` and `database` may be others afterwards.

        Interrupted before it is answered, the lease is over.

        Args:
            timeout: seconds to wait at most; None for the daemon's default.

        Raises:
            NotYourLeaseError: it has ended.
            AcquireTimeoutError, PoolFullError: there was no clean clone in time; the lease is over.
        """
        try:
            self._client.ask("reset", {"lease": self.token, "timeout": timeout}, self._take)
        except (ShuttingDownError, BadRequestError, LeaseBusyError, ClientLimitError):
            raise  # nothing has changed
        except ClonepoolError:
            self._held = False
            raise
        except BaseException:
            self._go_back()
            raise

    def exchange(
        self,
        template: str | None = None,
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        label: str | None = None,
        fresh: bool = False,
        stale_ok: bool = False,
        progress: bool = False,
    ) -> None:
        """Give the clone back and take another one, in one round trip: this is its lease then.

        All attributes are those of the new lease afterwards, `token` too. Unlike `reset` it does
        not wait for the clone that it gives back. What that lease left is told by a LeakWarning.

        Args:
            template: of the new lease; None for the same. It and the rest are as of `Client.lease`;
                nothing is taken over from the old lease.
            timeout: seconds to wait at most; None for the daemon's default.
            ttl: seconds that the new lease lasts; None to end it with the connection.
            label: what the daemon shows to people; None for the client's name.
            fresh: whether the clone must be one that nobody had before.
            stale_ok: whether a clone of the old state will do while the template is built again.
            progress: whether to be notified once a second while waiting.

        Raises:
            NotYourLeaseError: this lease had ended before, and none was taken in its place; not for
                one that was lost with a connection which `reconnect` has replaced.
            ClonepoolError: what `Client.lease` raises. As after an interrupt, the old lease is over
                then, and there is no new one.
        """
        params = wish(
            template or self.template,
            timeout=timeout,
            ttl=ttl,
            label=label,
            fresh=fresh,
            stale_ok=stale_ok,
            progress=progress,
        )

        def take(connection: Connection, granted: dict[str, Any]) -> None:
            self._take(granted)
            self._connection, self._held = connection, ttl is None

        ended = self._held and self._connection.has_ended  # and the lease with it
        try:
            self._client.obtain(params, take, instead_of=None if ended else self.token)
        except BaseException:
            self._go_back()  # it may not even have been sent; twice is harmless
            raise

    def snapshot(self, template: str, *, end_sessions: bool = False) -> str:
        """Make a template of the clone as it is now; the lease goes on.

        Whoever may use the daemon can lease clones of it afterwards. One that was made under this
        name by an earlier snapshot is replaced.

        Args:
            template: its name: a letter, then up to 21 letters, digits or underscores, lower case.
            end_sessions: whether sessions on the clone are ended; nobody must be connected to it.

        Returns:
            The generation.

        Raises:
            NotAllowedError: the configuration does not allow it.
            CloneInUseError: somebody is connected to the clone.
            BadRequestError: the name is taken by a template that no snapshot made, or is none.
            ClientLimitError: clients have made as many templates as may be, and use them all.
            NotYourLeaseError, TemplateFailedError: the lease has ended, or PostgreSQL refused.
        """
        made = self._client.call(
            "snapshot", lease=self.token, template=template, end_sessions=end_sessions or None
        )
        generation: str = made["generation"]
        return generation

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        beside_the_point = (NotYourLeaseError, ConnectionLostError) if error is not None else ()
        with contextlib.suppress(ClientClosedError, *beside_the_point):
            self.release()

    def _way_back(self) -> tuple[str, dict[str, Any]]:
        return "release", {"lease": self.token}

    def _complaint(self) -> str:
        return (
            f"the lease of {self.database}, a clone of {self.template}, was not released; use it in"
            " a `with` block or call its release()"
        )

    def _take(self, granted: dict[str, Any]) -> None:
        self.token: str = granted["lease"]
        self.url: str = granted["url"]
        self.database: str = granted["database"]
        self.env: dict[str, str] = granted["env"]
        self.template: str = granted["template"]
        self.generation: str = granted["generation"]
        self.host: str = granted["host"]
        self.port: int = granted["port"]
        self.user: str = granted["user"]
        self.password: str = granted["password"]
        self.source: str = granted["source"]
        self.waited_seconds: float = granted["waited_seconds"]
        self.expires_in_seconds = granted["expires_in_seconds"]
