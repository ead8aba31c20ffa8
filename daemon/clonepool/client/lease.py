"""A lease, as its holder sees it."""

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
    """Return the parameters of an acquire; options that are false are left out."""
    wishes = {key: None if value is False else value for key, value in options.items()}
    return {"template": template, **wishes}


class Lease(Holding):
    """The exclusive right to one clone, until it is released, expires, or its client is closed.

    A lease that is garbage-collected before that is released too, with a ResourceWarning that names
    it. One with a TTL is not: it belongs to every process that knows its token.

    A release or a reset that is interrupted, for example by Ctrl-C, ends the lease all the same.

    Attributes:
        url: libpq URL of the clone.
        database: the clone's name.
        env: `DATABASE_URL` and the `PG*` variables.
        template: the template's name.
        generation: the state of the template that was cloned.
        host: a name, an address, or the directory of a Unix socket.
        port: the server's port.
        user: the role to log in as.
        password: that role's password.
        source: `ready` if a clone was ready, `waited` if the acquire had to wait for one.
        waited_seconds: seconds that the acquire waited.
        expires_in_seconds: seconds that the lease lasted when it was granted or renewed; None if it
            has no limit.
        token: identifies the lease; anyone who knows it can end the lease.
    """

    expires_in_seconds: float | None

    @classmethod
    def granted(
        cls, client: Client, connection: Connection, told: dict[str, Any], *, lasts: bool
    ) -> Lease:
        """Return a lease made from the daemon's reply.

        Args:
            client: the client that will renew, reset and release it.
            connection: the connection over which it was granted.
            told: the reply.
            lasts: whether the lease outlives that connection.
        """
        lease = cls(client, connection)
        lease._take(told)
        lease._held = not lasts
        return lease

    def __repr__(self) -> str:
        return f"<Lease {self.database}>"

    def release(self, *, keep: bool = False, report: bool = False) -> list[dict[str, Any]] | None:
        """Give the clone back at once; a LeakWarning tells later what the lease left.

        If interrupted before the reply, the lease ends all the same.

        Args:
            keep: set the clone aside for the template's `keep_for`. Waits until that
                is recorded, and reports as `report` does.
            report: wait until it is known what the lease left. By then its changes in the server
                as a whole have been undone, where that is possible.

        Returns:
            With `keep` or `report`, what the lease left: sessions that were still open on the clone
            and are being ended, each with pid, application_name, state and query, and changes in
            the server, in `what`; None if the server could not be asked. Without them None.

        Raises:
            NotYourLeaseError: the lease had ended.
        """
        params = {"lease": self.token, "keep": keep or None, "report": report or None}
        ended = self._end("release", params)
        leaked: list[dict[str, Any]] | None = ended["leaked"]
        return leaked

    def renew(self, ttl: float | None = None) -> float | None:
        """Extend the lease to `ttl` seconds from now; None for the TTL of its acquire.

        Returns:
            Seconds that the lease lasts now, at most the template's max_lease; None if unlimited.

        Raises:
            NotYourLeaseError: the lease has ended.
            ServerUnavailableError: the change could not be recorded; the lease is not extended.
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
        """Replace the clone's contents by the template's; `url` and `database` may change.

        If interrupted before the reply, the lease is over.

        Args:
            timeout: most seconds to wait; None for the daemon's default.

        Raises:
            NotYourLeaseError: the lease has ended.
            AcquireTimeoutError, PoolFullError: no clean clone was ready in time; the lease is over.
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
        """Give the clone back and lease another one in its place, in one round trip.

        Afterwards all attributes, `token` included, are those of the new lease. Unlike `reset`, it
        does not wait for the clone that it gives back. A LeakWarning tells what that lease left.

        Args:
            template: the template of the new lease; None for the same. This and the other options
                are those of `Client.lease`; none is taken over from the old lease.
            timeout: most seconds to wait; None for the daemon's default.
            ttl: seconds that the new lease lasts; None to end it with the connection.
            label: the holder's name that the daemon shows; None for the client's name.
            fresh: whether the clone must never have been leased before.
            stale_ok: whether to accept a clone of the old state while the template is built again.
            progress: whether to be sent a notification once a second while waiting.

        Raises:
            NotYourLeaseError: this lease had ended before, and no other was taken. Not raised if
                it was lost with a connection that `reconnect` has replaced.
            ClonepoolError: as `Client.lease`. The old lease is over then and there is no new one,
                as after an interrupt.
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
        """Make a template from the clone's present state; the lease continues.

        Afterwards every user of the daemon can lease clones of the template. A template that an
        earlier snapshot made under this name is replaced.

        Args:
            template: its name: a letter, then up to 21 letters, digits or underscores, lower case.
            end_sessions: whether to end the sessions on the clone, which must have none.

        Returns:
            The generation.

        Raises:
            NotAllowedError: the configuration does not allow it.
            CloneInUseError: sessions are open on the clone.
            BadRequestError: the name is not valid, or belongs to a template of another kind.
            ClientLimitError: there are as many such templates as allowed, and all are in use.
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
