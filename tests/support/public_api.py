"""A user's program that uses every public name of clonepool with the types that are promised.

It is not run: `mypy --strict` checks it, as it would check a user's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

import clonepool
from clonepool import errors

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def notified(method: str, params: dict[str, Any]) -> None:
    del method, params


def lease_by_itself() -> str:
    leased: AbstractContextManager[clonepool.Lease] = clonepool.lease(
        "blog", timeout=5, label="mine", socket_path="/run/x.sock", reconnect=1.5
    )
    with leased as db:
        assert_type(db, clonepool.Lease)
        return db.url


def leases_of_a_client() -> None:
    with clonepool.Client(
        "/run/x.sock", name="runner", reconnect=30, on_notification=notified
    ) as client:
        assert_type(client, clonepool.Client)
        assert_type(client.reserve("blog", tests=400, parallelism=8), dict[str, int])
        db = client.lease(
            "blog", timeout=1, ttl=60.0, label="x", fresh=True, stale_ok=True, progress=True
        )
        assert_type(db, clonepool.Lease)
        assert_type(
            (db.token, db.url, db.database, db.template, db.generation, db.host, db.user),
            tuple[str, str, str, str, str, str, str],
        )
        assert_type(db.port, int)
        assert_type(db.env, dict[str, str])
        assert_type(db.expires_in_seconds, float | None)
        assert_type(db.renew(120), float | None)
        assert_type(db.snapshot("loaded", end_sessions=True), str)
        db.reset(timeout=3)
        db.exchange("another", timeout=1, ttl=None, label=None, fresh=False)
        left = db.release(keep=True, report=True)
        assert_type(left, list[dict[str, Any]] | None)
        del db
        status: Any = client.call("status")
        del status
    client.close()


def template_to_fill(client: clonepool.Client) -> str:
    with client.define("digest", name="made", timeout=60) as definition:
        assert_type(definition, clonepool.Definition)
        if not definition.filled:
            assert_type(definition.url + definition.database + definition.env["PGHOST"], str)
    return definition.template


def every_error() -> list[type[clonepool.ClonepoolError]]:
    try:
        lease_by_itself()
    except clonepool.AcquireTimeoutError as error:
        assert_type(error.code, str)
        assert_type(error.remedy, str)
        assert_type(error.sentence(), str)
    found: type[errors.ClonepoolError] = errors.BY_CODE["pool_full"]
    return [
        found,
        clonepool.AccessDeniedError,
        clonepool.BadRequestError,
        clonepool.ClientClosedError,
        clonepool.ClientLimitError,
        clonepool.CloneInUseError,
        clonepool.ConnectionLostError,
        clonepool.DaemonNotFoundError,
        clonepool.DrainingError,
        clonepool.LeaseBusyError,
        clonepool.NotAllowedError,
        clonepool.NotYourDefinitionError,
        clonepool.NotYourLeaseError,
        clonepool.PoolFullError,
        clonepool.QueueFullError,
        clonepool.RequestCancelledError,
        clonepool.ServerUnavailableError,
        clonepool.ShuttingDownError,
        clonepool.TemplateFailedError,
        clonepool.UnknownMethodError,
        clonepool.UnknownTemplateError,
    ]


def warned(warning: clonepool.LeakWarning) -> ResourceWarning:
    return warning
