"""The synchronous client: one method per request of the protocol.

How requests travel over a connection, and what an interrupt does to them, is in `connection`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager

from clonepool.client.connection import Connection
from clonepool.client.definition import Definition
from clonepool.client.leaks import warn_of_leaks
from clonepool.client.lease import Lease, wish
from clonepool.errors import (
    ClientClosedError,
    ConnectionLostError,
    DaemonNotFoundError,
    ShuttingDownError,
)
from clonepool.paths import SOCKET_VARIABLE, is_trusted, socket_candidates

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any, TypeVar

    T = TypeVar("T")

_RETRY_SECONDS = 0.05
_NAME_CHARACTERS = 200


class Client:
    """A connection to the daemon. Leases without a TTL that were taken over it end when it closes.

    Threads may share a client: their calls run side by side, and each gets its own reply. It starts
    no threads. The child of a fork must make a client of its own: using the inherited one raises
    ClientClosedError, and however the child ends, the parent's leases stay.

    A call may be interrupted anywhere, by Ctrl-C, by a test's timeout that a signal delivers, or by
    any other exception raised in the waiting thread: its request is cancelled, and what was granted
    for it is given back. Signal handlers may raise exceptions and close the client; any other call
    that a handler makes while the same thread is in a call raises RuntimeError.

    Args:
        socket_path: the daemon's socket; None for `CLONEPOOL_SOCKET`, else the default places.
        name: the holder's name that the daemon shows; None for the program and its pid.
        reconnect: seconds to wait for a daemon that is stopping, away or starting, when the client
            connects or asks for a lease. So no request is lost while the daemon is upgraded; leases
            are, as with any closed connection. A lease with a TTL whose grant did not arrive lasts
            until its TTL is over.
        on_notification: called with the method and the parameters of each notification, in order,
            in one of the threads that wait for a reply. It may use the client. An exception that it
            raises ends that thread's call, as an interrupt does.

    If a lease that was released without a report left sessions or changes, a LeakWarning says so
    during the next call that waits for a reply.

    Raises:
        DaemonNotFoundError: no daemon can be reached there.
        AccessDeniedError: by the first call, if this user may not use the daemon.
        ClientClosedError: by calls during and after `close`, and in the child of a fork.
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
        self._on_notification = warn_of_leaks(on_notification)
        self._reconnecting = threading.RLock()
        self._closed = False
        name = name if name is not None else f"{sys.argv[0] or 'python'} pid {os.getpid()}"
        self._name = name[-_NAME_CHARACTERS:].encode(errors="replace").decode()
        self._connection = self._persist(self._connect, lambda: None)

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
            template: the template's name.
            timeout: most seconds to wait; None for the daemon's default.
            ttl: seconds that the lease lasts, even if this connection or the daemon ends; None to
                end it with the connection.
            label: the holder's name that the daemon shows; None for the client's name.
            fresh: whether the clone must never have been leased before.
            stale_ok: whether to accept a clone of the old state while the template is built again.
            progress: whether to be sent a notification once a second while waiting.

        Raises:
            AcquireTimeoutError, PoolFullError, QueueFullError: no clone became ready in time; the
                message says why.
            UnknownTemplateError, TemplateFailedError, DrainingError: the template has no clones.
            ShuttingDownError, ConnectionLostError: the daemon is stopping, or gone.
        """
        params = wish(
            template,
            timeout=timeout,
            ttl=ttl,
            label=label,
            fresh=fresh,
            stale_ok=stale_ok,
            progress=progress,
        )
        return self.obtain(
            params,
            lambda connection, granted: Lease.granted(
                self, connection, granted, lasts=ttl is not None
            ),
        )

    def obtain(
        self,
        params: dict[str, Any],
        take: Callable[[Connection, dict[str, Any]], T],
        *,
        instead_of: str | None = None,
    ) -> T:
        """Acquire a lease with the parameters that `wish` returned, and return `take`'s result.

        Args:
            params: of the `acquire`.
            take: called with the connection over which the lease was granted, and the grant.
            instead_of: the token of a lease to release first, in the same write. If the connection
                ends, the release may not have arrived, and is sent again over the next one.

        Raises:
            ClonepoolError: as `lease`.
            NotYourLeaseError: there is no lease of the token `instead_of`; none was taken.
        """
        connection = self._connection
        params = {**params, "label": (params["label"] or self._name)[:_NAME_CHARACTERS]}
        is_first = True

        def ask() -> T:
            nonlocal connection, is_first
            connection = self._connection
            released, is_first = instead_of if is_first else None, False
            if instead_of is not None and released is None:
                connection.post("release", lease=instead_of)
            taken: T = connection.ask("acquire", params, made, instead_of=released)
            return taken

        def made(granted: dict[str, Any]) -> T:
            return take(connection, granted)

        return self._persist(ask, lambda: self._replace(connection))

    def reserve(self, template: str, *, tests: int, parallelism: int = 1) -> dict[str, int]:
        """Announce tests, so that enough clones are ready when they start.

        A hint, not a promise. It ends when that many leases of the template have been taken, over
        this connection or others, when this connection ends, or when no lease was taken for ten
        minutes. A second reservation for the same template replaces the first.

        Args:
            template: the template's name.
            tests: number of tests still to come; 0 cancels the reservation.
            parallelism: number of them that run at a time.

        Returns:
            `target`, the number of clones that the daemon now tries to hold ready, and `ready`, the
            number that are ready.

        Raises:
            UnknownTemplateError, TemplateFailedError, DrainingError: the template has no clones.
            ShuttingDownError, ConnectionLostError: the daemon is stopping, or gone.
        """
        reserved: dict[str, int] = self.call(
            "reserve", template=template, tests=tests, parallelism=parallelism
        )
        return reserved

    def define(
        self, content: str, *, name: str | None = None, timeout: float | None = None
    ) -> Definition:
        """Find the template for `content`, or be the client that fills it.

        One client fills the template, the others wait. Use the result in a `with` block: at its end
        the filled database becomes the template, or is dropped if there was an error::

            with client.define(digest_of("migrations")) as definition:
                if not definition.filled:
                    migrate(definition.url)
            lease = client.lease(definition.template)

        Args:
            content: a text of up to 200 characters that identifies what the template will hold,
                such as a digest of the migrations.
            name: prefix of the template's name.
            timeout: most seconds to wait for the client that fills the template; None for the
                daemon's default.

        Raises:
            NotAllowedError: the configuration does not allow it.
            AcquireTimeoutError: another client did not finish in time.
            ClientLimitError: there are as many such templates as allowed, and all are in use.
            TemplateFailedError: the database to fill could not be made.
        """
        params = {"hash": content, "name": name, "timeout": timeout}
        connection = self._connection
        definition: Definition = connection.ask(
            "define", params, lambda told: Definition.told(self, connection, told)
        )
        return definition

    def call(self, method: str, **params: object) -> Any:
        """Send one request and wait for its result; parameters that are None are left out.

        Raises:
            ClonepoolError: the daemon's error, as the class of its code.
            ConnectionLostError: the daemon is gone, or the client was closed.
        """
        return self._connection.ask(method, params)

    def ask(self, method: str, params: dict[str, Any], make: Callable[[Any], T]) -> T:
        """Send one request and return what `make` returns for its result; see `Connection.ask`."""
        made: T = self._connection.ask(method, params, make)
        return made

    def post(self, method: str, **params: object) -> None:
        """Send a request and ignore its reply; see `Connection.post`."""
        self._connection.post(method, **params)

    def close(self) -> None:
        """Close the connection, which ends every lease that was taken over it without a TTL.

        Calls of other threads that are waiting raise ClientClosedError, as does any later use of
        the client or its leases. May be called again, from any thread and from a signal handler. In
        the child of a fork it ends nothing of the parent's.
        """
        self._closed = True
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _persist(self, attempt: Callable[[], T], before_next: Callable[[], None]) -> T:
        """Repeat an attempt that fails because the daemon is away, for `reconnect` seconds."""
        deadline = time.monotonic() + self._reconnect
        while True:
            try:
                return attempt()
            except ClientClosedError:
                raise
            except (DaemonNotFoundError, ConnectionLostError, ShuttingDownError):
                if time.monotonic() + _RETRY_SECONDS > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)
            with contextlib.suppress(DaemonNotFoundError):
                before_next()

    def _connect(self) -> Connection:
        return Connection(_connect(self._socket_path), self._on_notification)

    def _replace(self, broken: Connection) -> None:
        """Connect again, unless another thread has done so, or the client was closed."""
        with self._reconnecting:
            if self._connection is broken and not self._closed:
                self._connection = self._connect()
                broken.close(to_reconnect=True)
            if self._closed:
                self._connection.close()


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
        template: the template's name.
        timeout: most seconds to wait; None for the daemon's default.
        label: the holder's name that the daemon shows.
        socket_path: the daemon's socket; None for `CLONEPOOL_SOCKET`, else the default places.
        reconnect: seconds to wait for a daemon that is being restarted.

    Raises:
        DaemonNotFoundError: no daemon can be reached.
        ClonepoolError: as `Client.lease`.
    """
    with (
        Client(socket_path, reconnect=reconnect) as client,
        client.lease(template, timeout=timeout, label=label) as it,
    ):
        yield it


def _connect(socket_path: str | None) -> socket.socket:
    candidates = socket_candidates(socket_path)
    problem = None
    for candidate in candidates:
        connection = socket.socket(socket.AF_UNIX)
        try:
            _connect_to(connection, candidate)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError) or isinstance(error, TimeoutError):
                raise  # raised by a signal's handler: connecting itself has no timeout
            if not isinstance(error, FileNotFoundError):
                problem = candidate, error
        else:
            return connection
    raise _not_found(candidates, problem)


class _UntrustedError(PermissionError):
    """Another user could have put the socket where it is."""


def _connect_to(connection: socket.socket, path: str) -> None:
    connection.settimeout(None)  # whatever socket.setdefaulttimeout says
    if not is_trusted(path):
        raise _UntrustedError("its directory belongs to another user")
    connection.connect(path)


def _not_found(candidates: list[str], problem: tuple[str, OSError] | None) -> DaemonNotFoundError:
    """Return the error for a daemon that cannot be reached, with the remedy for its cause.

    Args:
        candidates: where its socket may be.
        problem: a socket that is there and cannot be used, and why not.
    """
    found = f"no clonepool daemon at {' or '.join(candidates)}"
    named = len(candidates) == 1
    remedy = (
        "start one there with `clonepool serve --socket PATH`, or correct the path, which --socket,"
        f" socket_path or {SOCKET_VARIABLE} named"
        if named
        else f"start one with `clonepool serve`, or name its socket with {SOCKET_VARIABLE}"
    )
    if problem is None:
        return DaemonNotFoundError(found, remedy=remedy)
    path, error = problem
    said = f"{path}: {error.strerror or error}"
    if isinstance(error, _UntrustedError):
        return DaemonNotFoundError(
            f"{found}; {said}",
            remedy="have the daemon listen in a directory of its own user or of root that is not"
            " below the temporary directory, or start one of your own with `clonepool serve`",
        )
    if isinstance(error, PermissionError):
        return DaemonNotFoundError(
            f"this user may not connect to the clonepool daemon at {said}",
            remedy="log in as a member of the socket's group (`ls -l` shows it), and add this user"
            " to access.allow_users or access.allow_groups",
        )
    return DaemonNotFoundError(f"{found}; {said}", remedy=remedy)
