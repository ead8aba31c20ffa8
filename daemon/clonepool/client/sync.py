"""The synchronous client: what can be asked of the daemon, over one connection at a time."""

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
    """A connection to the daemon. Leases taken through it end when it is closed, save for a TTL.

    Threads may share it: their calls are under way side by side, and each gets its own answer. No
    thread is started for it. The child of a fork must make one of its own; what it inherits says
    so when it is used, and neither sends anything nor ends anything, however the child ends.

    A call may be interrupted anywhere, by Ctrl-C, by a test's timeout that a signal brings, or by
    any other exception that comes out of the wait: its request is taken back, and what was granted
    to nobody is given back. Signal handlers may raise, and close the client; other calls in the
    middle of one of the same thread raise RuntimeError.

    Args:
        socket_path: the daemon's socket; else `CLONEPOOL_SOCKET`, else the default places.
        name: what the daemon shows to people as the leases' holder.
        reconnect: seconds for which a daemon that stops, is away or starts again is waited for when
            a connection is made or a lease is asked for. So an upgrade of the daemon loses no
            request; leases held over it are lost as with any closed connection. A lease with a TTL
            whose grant was lost on the way lasts until its time is over.
        on_notification: called with the method and the parameters of what the daemon says without
            having been asked, in order, in one of the threads that wait for a reply meanwhile. It
            may use the client. What it raises ends that thread's call, as an interrupt does.

    What a lease left that was released without a report is told by a LeakWarning, out of the next
    call that waits for a reply.

    Raises:
        DaemonNotFoundError: nobody listens there.
        AccessDeniedError: on the first call, when this user may not use the daemon.
        ClientClosedError: on calls after `close`, those that were waiting then, and in the child
            of a fork.
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
        """Acquire what `wish` said, and return what `take` makes of the grant.

        Args:
            params: of the `acquire`.
            take: is given the connection over which the lease was granted, and the grant.
            instead_of: the token of a lease that is released before, by the same write. Whether it
                was is not known when that connection ends; it is released again over the next.

        Raises:
            ClonepoolError: what `lease` raises.
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
        params = {"hash": content, "name": name, "timeout": timeout}
        connection = self._connection
        definition: Definition = connection.ask(
            "define", params, lambda told: Definition.told(self, connection, told)
        )
        return definition

    def call(self, method: str, **params: object) -> Any:
        """Send one request and wait for its result; parameters that are None are left out.

        Raises:
            ClonepoolError: what the daemon answered, as the class of its code.
            ConnectionLostError: the daemon went away, or the client was closed.
        """
        return self._connection.ask(method, params)

    def ask(self, method: str, params: dict[str, Any], make: Callable[[Any], T]) -> T:
        """Send one request and make something of its result; see `Connection.ask`."""
        made: T = self._connection.ask(method, params, make)
        return made

    def post(self, method: str, **params: object) -> None:
        """Send a request whose answer nobody wants; see `Connection.post`."""
        self._connection.post(method, **params)

    def close(self) -> None:
        """End the connection, and with it every lease taken through it that has no TTL.

        Threads that wait get ClientClosedError, as does whoever uses the client or its leases
        later. May be called again, from any thread and from a signal handler. In the child of a
        fork it ends nothing of the parent's.
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
        """Try until it works, for as long as `reconnect` says, while the daemon is merely away."""
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
        """Connect anew, unless another thread has done so, or the client was closed."""
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
            remedy="log in as a member of the socket's group (`ls -l` shows it), and have access"
            ".allow_users or access.allow_groups name this user",
        )
    return DaemonNotFoundError(f"{found}; {said}", remedy=remedy)
