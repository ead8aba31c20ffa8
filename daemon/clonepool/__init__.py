"""clonepool: warm PostgreSQL clones for tests, leased over a Unix socket.

    import clonepool

    with clonepool.lease("blog") as db:
        connect(db.url)

The names in `__all__` are the public Python API; docs/releasing.md says what is promised for them.
Each error that a client can raise is here too, so `except clonepool.AcquireTimeoutError` needs no
second import. Importing this needs only the standard library.
"""

from clonepool.client import Client, Definition, LeakWarning, Lease, lease
from clonepool.errors import (
    AccessDeniedError,
    AcquireTimeoutError,
    BadRequestError,
    ClientClosedError,
    ClientLimitError,
    CloneInUseError,
    ClonepoolError,
    ConnectionLostError,
    DaemonNotFoundError,
    DrainingError,
    LeaseBusyError,
    NotAllowedError,
    NotYourDefinitionError,
    NotYourLeaseError,
    PoolFullError,
    QueueFullError,
    RequestCancelledError,
    ServerUnavailableError,
    ShuttingDownError,
    TemplateFailedError,
    UnknownMethodError,
    UnknownTemplateError,
)

__all__ = [
    "AccessDeniedError",
    "AcquireTimeoutError",
    "BadRequestError",
    "Client",
    "ClientClosedError",
    "ClientLimitError",
    "CloneInUseError",
    "ClonepoolError",
    "ConnectionLostError",
    "DaemonNotFoundError",
    "Definition",
    "DrainingError",
    "LeakWarning",
    "Lease",
    "LeaseBusyError",
    "NotAllowedError",
    "NotYourDefinitionError",
    "NotYourLeaseError",
    "PoolFullError",
    "QueueFullError",
    "RequestCancelledError",
    "ServerUnavailableError",
    "ShuttingDownError",
    "TemplateFailedError",
    "UnknownMethodError",
    "UnknownTemplateError",
    "lease",
]
