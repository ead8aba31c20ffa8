"""The protocol's methods and the dispatcher, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from prometheus_client import CollectorRegistry

from clonepool.config import Config
from clonepool.observe.metrics import Metrics
from clonepool.service.api.admin import AdminMethods
from clonepool.service.api.leases import LeaseMethods
from clonepool.service.api.methods import Methods
from clonepool.service.api.progress import Drains
from clonepool.service.dispatcher import Dispatcher
from clonepool.service.lease_results import LeaseResults

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Container

    from clonepool.core.decisions import Lease
    from clonepool.core.fleet import Fleet
    from clonepool.service.dispatcher import Recorder, WorkQueue
    from clonepool.service.release_reports import Connections


class Api(NamedTuple):
    """The parts between the connections and the core."""

    dispatcher: Dispatcher
    methods: Methods


def make_api(
    fleet: Fleet,
    queue: WorkQueue,
    connections: Connections,
    loop: asyncio.AbstractEventLoop,
    clock: Callable[[], float],
    *,
    changing: Container[str] = (),
    recorder: Recorder | None = None,
) -> Api:
    """Make the parts that answer calls; templates can be leased, and nothing else.

    Args:
        fleet: decides.
        queue: takes the decisions that take time.
        connections: are notified.
        loop: keeps the time.
        clock: returns monotonic seconds.
        changing: templates whose leases change the server.
        recorder: writes down all events.
    """
    drains = Drains(fleet, loop)
    endpoint = cast("Any", SimpleNamespace(host="/tmp", port=5432))
    credentials = cast("Any", SimpleNamespace(of=_login_of))
    dispatcher = Dispatcher(
        fleet=fleet,
        queue=queue,
        results=LeaseResults(endpoint, credentials, clock),
        connections=connections,
        metrics=Metrics(CollectorRegistry(), list(fleet.pools)),
        loop=loop,
        clock=clock,
        changing=changing,
        observers=[drains.look],
        recorder=recorder,
    )
    access = Config().access
    leases = LeaseMethods(
        dispatcher,
        cast("Any", SimpleNamespace(step_of=lambda _: None)),
        acquire_timeout=5.0,
        max_leases=access.max_leases_per_client,
    )
    methods = Methods(
        leases=leases,
        templates=cast("Any", _NoTemplateMethods()),
        admin=AdminMethods(dispatcher, drains, instance="test", programs=""),
        board=cast("Any", SimpleNamespace(status=dict, leases=list, templates=list)),
        max_pending=access.max_pending_per_client,
    )
    return Api(dispatcher, methods)


def _login_of(_: Lease) -> Any:
    return SimpleNamespace(url="url", user="user", password="secret", env={})


class _NoTemplateMethods:
    """In place of the methods for templates, which no client here calls."""

    def disconnect(self, holder: int) -> None:
        """Nothing was begun."""

    def __getattr__(self, name: str) -> Any:
        return None
