"""The synchronous client: one socket, one request at a time."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clonepool.errors import ConnectionLostError, DaemonNotFoundError
from clonepool.paths import is_trusted, socket_candidates
from clonepool.protocol.client import ClientConnection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_READ_BYTES = 65_536


class Lease:
    """The exclusive right to one clone, until released or until its client is closed.

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
        token: names the lease; whoever knows it can end it on this connection.
    """

    def __init__(self, client: Client, granted: dict[str, Any]) -> None:
        self._client = client
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

    def __repr__(self) -> str:
        return f"<Lease {self.database}>"

    def release(self) -> list[dict[str, Any]] | None:
        """Give the clone back.

        Returns:
            The sessions that were still open on it and have been ended, each with pid,
            application_name, state and query; None when the server could not be asked.

        Raises:
            NotYourLeaseError: it was released before.
        """
        leaked: list[dict[str, Any]] | None = self._client.call("release", lease=self.token)[
            "leaked"
        ]
        return leaked

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Client:
    """A connection to the daemon. Leases taken through it end when it is closed.

    Threads may share it; their calls then take turns. A process that forks must not.

    Args:
        socket_path: the daemon's socket; else `CLONEPOOL_SOCKET`, else the default places.
        name: what the daemon shows to people as the leases' holder.

    Raises:
        DaemonNotFoundError: nobody listens there.
        AccessDeniedError: on the first call, when this user may not use the daemon.
    """

    def __init__(self, socket_path: str | None = None, *, name: str | None = None) -> None:
        self._socket = _connect(socket_path)
        self._protocol = ClientConnection()
        self._lock = threading.Lock()
        self._name = name if name is not None else f"{sys.argv[0] or 'python'} pid {os.getpid()}"
        self._name = self._name[-200:]

    def lease(
        self, template: str, *, timeout: float | None = None, label: str | None = None
    ) -> Lease:
        """Take a lease, at once or when a clone becomes ready.

        Args:
            template: its name.
            timeout: seconds to wait at most; None for the daemon's default.
            label: what the daemon shows to people; None for the client's name.

        Raises:
            AcquireTimeoutError, PoolFullError: none became ready in time; says why.
            UnknownTemplateError, TemplateFailedError: there is none to be had.
            ShuttingDownError, ConnectionLostError: the daemon stops, or is gone.
        """
        granted = self.call(
            "acquire", template=template, timeout=timeout, label=(label or self._name)[:200]
        )
        return Lease(self, granted)

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
        """End the connection, and with it every lease taken through it."""
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
            for reply in self._protocol.receive(data):
                if reply.error is not None and reply.id in (request, None):
                    raise reply.error
                if reply.id == request:
                    return reply.result


@contextmanager
def lease(
    template: str,
    *,
    timeout: float | None = None,
    label: str | None = None,
    socket_path: str | None = None,
) -> Iterator[Lease]:
    """Lease a clone for the length of a `with` block, over a connection of its own.

    Args:
        template: its name.
        timeout: seconds to wait at most; None for the daemon's default.
        label: what the daemon shows to people.
        socket_path: the daemon's socket; else `CLONEPOOL_SOCKET`, else the default places.

    Raises:
        DaemonNotFoundError: no daemon runs.
        ClonepoolError: what `Client.lease` raises.
    """
    with Client(socket_path) as client, client.lease(template, timeout=timeout, label=label) as it:
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
