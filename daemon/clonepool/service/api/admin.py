"""The methods about the connection and the daemon: hello, ping, cancel, drain."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from clonepool.core import events
from clonepool.errors import BadRequestError
from clonepool.protocol.messages import PROTOCOL_VERSION, CancelResult, HelloResult

if TYPE_CHECKING:
    from clonepool.protocol.messages import Cancel, Drain, Hello, Ping
    from clonepool.service.api.progress import Drains
    from clonepool.service.call import Call
    from clonepool.service.dispatcher import Dispatcher

DAEMON = f"clonepool {version('clonepool')}"


class AdminMethods:
    """Answers what is about no lease and no template.

    Args:
        dispatcher: drains.
        drains: the calls that wait for leases to end.
        instance: the daemon's name among others on the server.
        programs: directory of the embedded server's programs; empty when there is none.
    """

    def __init__(
        self, dispatcher: Dispatcher, drains: Drains, *, instance: str, programs: str
    ) -> None:
        self._dispatcher = dispatcher
        self._drains = drains
        self._instance = instance
        self._programs = programs

    def hello(self, call: Call, params: Hello) -> None:
        """Agree on the protocol, and remember what the client calls itself."""
        if params.protocol != PROTOCOL_VERSION:
            raise BadRequestError(
                f"protocol {params.protocol} is not supported",
                remedy=f"this daemon speaks protocol {PROTOCOL_VERSION}",
            )
        if params.client:
            call.connection.rename(params.client)
        call.reply(HelloResult(PROTOCOL_VERSION, DAEMON, self._instance, self._programs))

    def ping(self, call: Call, _: Ping) -> None:
        """Answer."""
        call.reply({})

    def cancel(self, call: Call, params: Cancel) -> None:
        """Cancel another call of this connection, which is answered first."""
        other = call.connection.cancellable.get(params.request)
        call.reply(CancelResult(other is not None and other.cancel()))

    def drain(self, call: Call, params: Drain) -> None:
        """Grant no new leases, and answer when none is left or time is up; or grant again."""
        self._dispatcher.handle(events.Drain(params.template, not params.off))
        timeout = 0.0 if params.off else params.timeout
        self._drains.watch(call, params.template, timeout, progress=params.progress)
