"""Every error of clonepool and its wire code, on one screen.

An error says what happened (`str(error)`), and what the reader can do about it (`remedy`). Its
`code` is stable: clients in any language branch on it. Standard library only, because the
synchronous client raises these too.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from typing import ClassVar


class ClonepoolError(Exception):
    """Base of all errors that clonepool raises on purpose.

    Attributes:
        code: stable name, the `data.code` of the wire.
        remedy: what the reader can do, or an empty string.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, remedy: str = "") -> None:
        # A file's name may be in it, which may be of any bytes: what is told must be text.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.remedy = remedy

    def sentence(self) -> str:
        """Return message and remedy as one line."""
        return f"{self} ({self.remedy})" if self.remedy else str(self)


# What a client can be told. ---------------------------------------------------------------


class BadRequestError(ClonepoolError):
    """The request is not JSON, not JSON-RPC, or has the wrong fields."""

    code = "bad_request"


class UnknownMethodError(ClonepoolError):
    """There is no method of that name."""

    code = "unknown_method"


class UnknownTemplateError(ClonepoolError):
    """There is no template of that name."""

    code = "unknown_template"


class AcquireTimeoutError(ClonepoolError):
    """No clone became ready before the deadline of the acquire."""

    code = "acquire_timeout"


class PoolFullError(ClonepoolError):
    """The deadline passed while every clone that the limits allow was leased."""

    code = "pool_full"


class QueueFullError(ClonepoolError):
    """As many acquires wait as may wait."""

    code = "queue_full"


class DrainingError(ClonepoolError):
    """The daemon, or the template, was told to grant no new leases."""

    code = "draining"


class ClientLimitError(ClonepoolError):
    """A connection holds or asks for more than one may, or there are too many connections."""

    code = "client_limit"


class TemplateFailedError(ClonepoolError):
    """The template could not be built; the message is the cause."""

    code = "template_failed"


class NotYourLeaseError(ClonepoolError):
    """The token names no lease: it is wrong, or the lease has ended."""

    code = "not_your_lease"


class LeaseBusyError(ClonepoolError):
    """The lease is being reset; it goes on, and what was asked for was not done."""

    code = "lease_busy"


class NotYourDefinitionError(ClonepoolError):
    """The token names no template to be filled: wrong, finalized, given up, or too late."""

    code = "not_your_definition"


class NotAllowedError(ClonepoolError):
    """The configuration does not let clients make templates."""

    code = "not_allowed"


class CloneInUseError(ClonepoolError):
    """Somebody is connected to a database that has to be at rest."""

    code = "clone_in_use"


class ServerUnavailableError(ClonepoolError):
    """PostgreSQL cannot be reached, or took longer than the deadline."""

    code = "server_unavailable"


class ResourceError(ServerUnavailableError):
    """The server has no more of something.

    Attributes:
        limit: what of, as `limited_by` names it.
    """

    def __init__(self, message: str, *, limit: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.limit = limit


class ShuttingDownError(ClonepoolError):
    """The daemon is stopping and grants nothing more."""

    code = "shutting_down"


class RequestCancelledError(ClonepoolError):
    """The connection that made the request has taken it back."""

    code = "cancelled"


class AccessDeniedError(ClonepoolError):
    """The kernel says that the caller is nobody who may use this daemon."""

    code = "access_denied"


# What the client says itself. ----------------------------------------------------------------


class DaemonNotFoundError(ClonepoolError):
    """No daemon answers on any of the places where one would be."""

    code = "no_daemon"


class ConnectionLostError(ClonepoolError):
    """The connection ended in the middle of a call, or before it."""

    code = "connection_lost"


class ClientClosedError(ConnectionLostError):
    """The client was closed on this side, or it is a parent process's."""

    code = "client_closed"


# What only the daemon's own operator meets. -----------------------------------------------


class ConfigError(ClonepoolError):
    """The configuration cannot be used; nothing was started."""

    code = "bad_config"


class EmbeddedServerError(ClonepoolError):
    """The embedded server cannot be made or started."""

    code = "embedded_server"


class ClusterLostError(EmbeddedServerError):
    """The embedded server's data was damaged under a running daemon, and every lease with it."""

    code = "cluster_lost"


class CapabilityError(ClonepoolError):
    """The server's version or the role's rights do not suffice."""

    code = "missing_capability"


class AlreadyRunningError(ClonepoolError):
    """Another daemon holds the socket, the state directory or the instance."""

    code = "already_running"


class StatementError(ClonepoolError):
    """PostgreSQL refused a statement.

    Attributes:
        sqlstate: five characters, as PostgreSQL's manual lists them.
    """

    code = "server_error"

    def __init__(self, message: str, *, sqlstate: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.sqlstate = sqlstate


BY_CODE: dict[str, type[ClonepoolError]] = {
    error.code: error
    for error in (
        BadRequestError,
        UnknownMethodError,
        UnknownTemplateError,
        AcquireTimeoutError,
        PoolFullError,
        QueueFullError,
        DrainingError,
        ClientLimitError,
        TemplateFailedError,
        NotYourLeaseError,
        LeaseBusyError,
        NotYourDefinitionError,
        NotAllowedError,
        CloneInUseError,
        ServerUnavailableError,
        ShuttingDownError,
        RequestCancelledError,
        AccessDeniedError,
    )
}
"""The errors that cross the wire, by code."""
