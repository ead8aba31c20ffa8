"""The methods of the protocol by name: the one table from a request to the function that answers.

The functions are in one module for each group of methods: `leases`, `templates`, `admin` and
`status`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clonepool.errors import ClientLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonepool.protocol.server import Message
    from clonepool.service.api.admin import AdminMethods
    from clonepool.service.api.leases import LeaseMethods
    from clonepool.service.api.status import StatusBoard
    from clonepool.service.api.templates import TemplateMethods
    from clonepool.service.call import Call

_MAY_WAIT = frozenset(
    ("acquire", "reset", "renew", "drain", "build", "explain", "snapshot", "define", "finalize")
)
"""Methods that may be answered late: what they ask for is held in memory until then."""


class Methods:
    """What every connection does with its calls.

    Args:
        leases: answers the methods about leases.
        templates: answers the methods about templates.
        admin: answers the methods for administration.
        board: tells what the daemon holds.
        max_pending: calls of one connection that may wait for their answers at a time.
    """

    def __init__(
        self,
        *,
        leases: LeaseMethods,
        templates: TemplateMethods,
        admin: AdminMethods,
        board: StatusBoard,
        max_pending: int,
    ) -> None:
        self._leases = leases
        self._templates = templates
        self._max_pending = max_pending
        self._table: dict[str, Callable[[Call, Any], None]] = {
            "hello": admin.hello,
            "acquire": leases.acquire,
            "release": leases.release,
            "renew": leases.renew,
            "reset": leases.reset,
            "reserve": leases.reserve,
            "drain": admin.drain,
            "status": lambda call, _: call.reply(board.status()),
            "leases": lambda call, _: call.reply(board.leases()),
            "templates": lambda call, _: call.reply(board.templates()),
            "build": templates.build,
            "explain": templates.explain,
            "snapshot": templates.snapshot,
            "define": templates.define,
            "finalize": templates.finalize,
            "cancel": admin.cancel,
            "ping": admin.ping,
        }

    def call(self, call: Call, message: Message) -> None:
        """Answer a call, now or later.

        Raises:
            ClonepoolError: the answer; the call has not been answered.
        """
        waiting = len(call.connection.open_calls)
        if waiting > self._max_pending and message.method in _MAY_WAIT:
            raise ClientLimitError(
                f"this connection waits for {waiting - 1} replies",
                remedy="read replies before you ask for more, or raise"
                " access.max_pending_per_client",
            )
        self._table[message.method](call, message.params)

    def stop(self) -> None:
        """Refuse the calls that wait for a template; the pools refuse their own waiters."""
        self._templates.stop()

    def disconnect(self, holder: int, open_calls: Iterable[Call]) -> None:
        """End what a connection held, and what its open calls wait for."""
        self._templates.disconnect(holder)
        self._leases.disconnect(holder, open_calls)
