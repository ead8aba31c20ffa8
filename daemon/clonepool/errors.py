"""Every error of clonepool and its wire code, on one screen.

An error says what happened (`str(error)`), and what the reader can do about it (`remedy`, which a
traceback shows too). Its `code` is stable: clients in any language branch on it. Standard library
only, because the synchronous client raises these too.
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
        # The message may hold a file's name, which may be of any bytes; it must be valid text.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.remedy = remedy
        if remedy:
            self.add_note(f"({remedy})")

    def sentence(self) -> str:
        """Return message and remedy as one line."""
        return f"{self} ({self.remedy})" if self.remedy else str(self)


# Errors that cross the wire. ---------------------------------------------------------------


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
    """The queue of the template is full."""

    code = "queue_full"


class DrainingError(ClonepoolError):
    """The daemon, or the template, is being drained and grants no new leases."""

    code = "draining"


class ClientLimitError(ClonepoolError):
    """A connection reached a limit on what it may hold, or too many clients are connected."""

    code = "client_limit"


class TemplateFailedError(ClonepoolError):
    """The template could not be built; the message is the cause."""

    code = "template_failed"


class NotYourLeaseError(ClonepoolError):
    """The token names no lease: it is wrong, or the lease has ended."""

    code = "not_your_lease"


class LeaseBusyError(ClonepoolError):
    """The lease is being reset: the request was not carried out, and the reset continues."""

    code = "lease_busy"


class NotYourDefinitionError(ClonepoolError):
    """The token names no definition: it is wrong, or was finalized, abandoned, or expired."""

    code = "not_your_definition"


class NotAllowedError(ClonepoolError):
    """The configuration does not let clients make templates."""

    code = "not_allowed"


class CloneInUseError(ClonepoolError):
    """Sessions are open on a database that must have none."""

    code = "clone_in_use"


class ServerUnavailableError(ClonepoolError):
    """PostgreSQL cannot be reached, or did not answer before the deadline."""

    code = "server_unavailable"


class ResourceError(ServerUnavailableError):
    """The server or the machine is short of a resource.

    Attributes:
        limit: the resource, as `limited_by` names it.
    """

    def __init__(self, message: str, *, limit: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.limit = limit


class ShuttingDownError(ClonepoolError):
    """The daemon is stopping, or could not start."""

    code = "shutting_down"


class RequestCancelledError(ClonepoolError):
    """The request was cancelled by the connection that made it."""

    code = "cancelled"


class AccessDeniedError(ClonepoolError):
    """The caller, whose user the kernel names, may not use this daemon."""

    code = "access_denied"


# Errors that the client itself raises. -----------------------------------------------------


class DaemonNotFoundError(ClonepoolError):
    """No daemon can be reached at any of the places where its socket may be."""

    code = "no_daemon"


class ConnectionLostError(ClonepoolError):
    """The connection ended in the middle of a call, or before it."""

    code = "connection_lost"


class ClientClosedError(ConnectionLostError):
    """The client was closed, or belongs to the process from which this one was forked."""

    code = "client_closed"


# Errors that only the daemon's operator sees. -----------------------------------------------


class ConfigError(ClonepoolError):
    """The configuration cannot be used, and nothing was started."""

    code = "bad_config"


class EmbeddedServerError(ClonepoolError):
    """The embedded server cannot be created or started."""

    code = "embedded_server"


class ClusterLostError(EmbeddedServerError):
    """The embedded server's data was damaged while the daemon ran; all leases are lost."""

    code = "cluster_lost"


class CapabilityError(ClonepoolError):
    """The server is too old, or the daemon's role lacks rights."""

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
