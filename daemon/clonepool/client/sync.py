"""The synchronous client: one socket, one request at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from clonepool.client.definition import Definition
from clonepool.errors import ConnectionLostError, DaemonNotFoundError, ShuttingDownError
from clonepool.paths import is_trusted, socket_candidates
from clonepool.protocol.client import ClientConnection, Notification, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

T = TypeVar("T")

_READ_BYTES = 65_536
_RETRY_SECONDS = 0.05


def _nothing() -> None:
    """Do nothing."""


class Lease:
    """The exclusive right to one clone: until released, expired, or its client is closed.

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

    def __init__(self, client: Client, granted: dict[str, Any]) -> None:
        self._client = client
        self._take(granted)

    def __repr__(self) -> str:
        return f"<Lease {self.database}>"

    def release(self, *, keep: bool = False) -> list[dict[str, Any]] | None:
        """Give the clone back.

        Args:
            keep: set the clone aside for a person, for as long as the template's `keep_for`.

        Returns:
            The sessions that were still open on it and have been ended, each with pid,
            application_name, state and query; None when the server could not be asked.

        Raises:
            NotYourLeaseError: it has ended before.
        """
        ended = self._client.call("release", lease=self.token, keep=keep or None)
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
        renewed = self._client.call("renew", lease=self.token, ttl=ttl)
        seconds: float | None = renewed["expires_in_seconds"]
        self.expires_in_seconds = seconds
        return seconds

    def reset(self, *, timeout: float | None = None) -> None:
        """Make the clone clean again; `url` and `database` may be others afterwards.

        Raises:
            NotYourLeaseError: it has ended.
            AcquireTimeoutError, PoolFullError: there was no clean clone in time; the lease is over.
        """
        self._take(self._client.call("reset", lease=self.token, timeout=timeout))

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
        self.release()

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


class Client:
    """A connection to the daemon. Leases taken through it end when it is closed, save for a TTL.

    Threads may share it; their calls then take turns. A process that forks must not.

    Args:
        socket_path: the daemon's socket; else `CLONEPOOL_SOCKET`, else the default places.
        name: what the daemon shows to people as the leases' holder.
        reconnect: seconds for which a daemon that stops, is away or starts again is waited for when
            a connection is made or a lease is asked for. So an upgrade of the daemon loses no
            request; leases held over it are lost as with any closed connection. A lease with a TTL
            whose grant was lost on the way lasts until its time is over.
        on_notification: called with the method and the parameters of what the daemon says without
            having been asked, while some call waits for its reply.

    Raises:
        DaemonNotFoundError: nobody listens there.
        AccessDeniedError: on the first call, when this user may not use the daemon.
    """

    def __init__(
        self,
        socket_path: str | None = None,
        *,
        name: str | None = None,
        reconnect: float = 0.0,
        on_notification: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self._socket_path = socket_path
        self._reconnect = reconnect
        self._on_notification = on_notification or (lambda _, __: None)
        self._lock = threading.Lock()
        self._name = name if name is not None else f"{sys.argv[0] or 'python'} pid {os.getpid()}"
        self._name = self._name[-200:]
        self._protocol = ClientConnection()
        self._socket = self._persist(lambda: _connect(socket_path))

    def lease(
        self,
        template: str,
        *,
        timeout: float | None = None,
        ttl: float | None = None,
        label: str | None = None,
        fresh: bool = False,
        stale_ok: bool = False,
        progress: bool = False,
    ) -> Lease:
        """Take a lease, at once or when a clone becomes ready.

        Args:
            template: its name.
            timeout: seconds to wait at most; None for the daemon's default.
            ttl: seconds that the lease lasts, whatever becomes of this connection and of the
                daemon; None to end it with the connection.
            label: what the daemon shows to people; None for the client's name.
            fresh: whether the clone must be one that nobody had before.
            stale_ok: whether a clone of the old state will do while the template is built again.
            progress: whether to be notified once a second while waiting.

        Raises:
            AcquireTimeoutError, PoolFullError, QueueFullError: none became ready; says why.
            UnknownTemplateError, TemplateFailedError, DrainingError: there is none to be had.
            ShuttingDownError, ConnectionLostError: the daemon stops, or is gone.
        """

        def ask() -> Any:
            return self.call(
                "acquire",
                template=template,
                timeout=timeout,
                ttl=ttl,
                label=(label or self._name)[:200],
                fresh=fresh or None,
                stale_ok=stale_ok or None,
                progress=progress or None,
            )

        return Lease(self, self._persist(ask, self._connect_anew))

    def reserve(self, template: str, *, tests: int, parallelism: int = 1) -> dict[str, int]:
        """Announce tests, so that as many clones as run at a time are ready when they begin.

        A hint and no promise: it ends when so many leases of the template have been taken, over
        this connection or others, with this connection, or when none is taken for ten minutes.
        Another for the same template replaces it.

        Args:
            template: its name.
            tests: how many are still to come; 0 takes a reservation back.
            parallelism: how many of them run at a time.

        Returns:
            `target`, how many clones the daemon now holds ready as far as there is room, and
            `ready`, how many are.

        Raises:
            UnknownTemplateError, TemplateFailedError, DrainingError: there is none to be had.
            ShuttingDownError, ConnectionLostError: the daemon stops, or is gone.
        """
        reserved: dict[str, int] = self.call(
            "reserve", template=template, tests=tests, parallelism=parallelism
        )
        return reserved

    def define(
        self, content: str, *, name: str | None = None, timeout: float | None = None
    ) -> Definition:
        """Have a template that `content` stands for; fill it if nobody has done that yet.

        One client fills it, others wait. Use the result in a `with` block: at its end what was
        filled becomes the template, or is given up if there was an error::

            with client.define(digest_of("migrations")) as definition:
                if not definition.filled:
                    migrate(definition.url)
            lease = client.lease(definition.template)

        Args:
            content: any text of up to 200 characters that is the same exactly when what will be
                filled in is the same, such as a digest of the migrations.
            name: how the template's name begins.
            timeout: seconds to wait for who fills it; None for the daemon's default.

        Raises:
            NotAllowedError: the configuration does not allow it.
            AcquireTimeoutError: another client was not done in time.
            ClientLimitError: clients have made as many templates as may be, and use them all.
            TemplateFailedError: there is no database to fill.
        """
        return Definition(self, self.call("define", hash=content, name=name, timeout=timeout))

    def call(self, method: str, **params: object) -> Any:
        """Send one request and wait for its result; parameters that are None are left out.

        Raises:
            ClonepoolError: what the daemon answered, as the class of its code.
            ConnectionLostError: the daemon went away.
        """
        with self._lock:
            request, line = self._protocol.request(method, params)
            try:
                self._socket.sendall(line)
            except OSError as error:
                # The daemon may have said why before it closed: read that first.
                return self._await_reply(request, error)
            return self._await_reply(request, None)

    def close(self) -> None:
        """End the connection, and with it every lease taken through it that has no TTL."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _persist(self, attempt: Callable[[], T], before_next: Callable[[], None] = _nothing) -> T:
        """Try until it works, for as long as `reconnect` says, while the daemon is merely away."""
        deadline = time.monotonic() + self._reconnect
        while True:
            try:
                return attempt()
            except (DaemonNotFoundError, ConnectionLostError, ShuttingDownError):
                if time.monotonic() + _RETRY_SECONDS > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)
            with contextlib.suppress(DaemonNotFoundError):
                before_next()

    def _connect_anew(self) -> None:
        """Replace the connection, and what may have been read of an unfinished line."""
        with self._lock:
            fresh = _connect(self._socket_path)
            self._socket.close()
            self._socket, self._protocol = fresh, ClientConnection()

    def _await_reply(self, request: int, cause: OSError | None) -> Any:
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError as error:
                data, cause = b"", error
            if not data:
                raise ConnectionLostError(
                    "the daemon closed the connection", remedy="see the daemon's log"
                ) from cause
            answers = [m for m in map(self._heard, self._protocol.receive(data)) if m is not None]
            for reply in answers:
                if reply.error is not None and reply.id in (request, None):
                    raise reply.error
                if reply.id == request:
                    return reply.result

    def _heard(self, message: Reply | Notification) -> Reply | None:
        """Pass a notification on; return a reply."""
        if isinstance(message, Reply):
            return message
        self._on_notification(message.method, message.params)
        return None


@contextmanager
def lease(
    template: str,
    *,
    timeout: float | None = None,
    label: str | None = None,
    socket_path: str | None = None,
    reconnect: float = 0.0,
) -> Iterator[Lease]:
    """Lease a clone for the length of a `with` block, over a connection of its own.

    Args:
        template: its name.
        timeout: seconds to wait at most; None for the daemon's default.
        label: what the daemon shows to people.
        socket_path: the daemon's socket; else `CLONEPOOL_SOCKET`, else the default places.
        reconnect: seconds for which a daemon that is being started again is waited for.

    Raises:
        DaemonNotFoundError: no daemon runs.
        ClonepoolError: what `Client.lease` raises.
    """
    with (
        Client(socket_path, reconnect=reconnect) as client,
        client.lease(template, timeout=timeout, label=label) as it,
    ):
        yield it


def _connect(socket_path: str | None) -> socket.socket:
    candidates = socket_candidates(socket_path)
    problem = ""
    for candidate in candidates:
        connection = socket.socket(socket.AF_UNIX)
        try:
            if not is_trusted(candidate):
                raise PermissionError("its directory belongs to another user")
            connection.connect(candidate)
        except OSError as error:
            connection.close()
            if not isinstance(error, FileNotFoundError):
                problem = f"; {candidate}: {error.strerror or error}"
        else:
            return connection
    raise DaemonNotFoundError(
        f"no clonepool daemon at {' or '.join(candidates)}{problem}",
        remedy="start one with `clonepool serve`, or name its socket with CLONEPOOL_SOCKET",
    )
