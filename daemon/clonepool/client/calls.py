"""What `connection` keeps of one request, and of how a connection ended."""

from __future__ import annotations

from _thread import get_ident

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from threading import Lock

    from clonepool.errors import ClonepoolError
    from clonepool.protocol.client import Reply


class Call:
    """One request, from before it is sent until it is answered.

    Attributes:
        sent: how many bytes of its line went out, in as many pieces.
        gate: where its thread waits while another one reads; locked, and unlocked to wake it.
        abandoned: whether its caller has gone: what is granted is to be given back.
    """

    __slots__ = ("abandoned", "gate", "id", "line", "method", "reply", "sent", "thread")

    def __init__(self, number: int, method: str, line: bytes) -> None:
        self.id = number
        self.method = method
        self.line = line
        self.sent: list[int] = []
        self.reply: Reply | None = None
        self.gate: Lock | None = None
        self.abandoned = False
        self.thread = get_ident()

    def wake(self) -> bool:
        """Have its thread look again; return whether it was asleep, and not woken yet."""
        if self.gate is None:
            return False
        try:
            self.gate.release()
        except RuntimeError:
            return False
        return True


class End:
    """Why there is nothing more to be had of a connection."""

    def __init__(
        self,
        kind: type[ClonepoolError],
        message: str,
        remedy: str,
        cause: BaseException | None = None,
    ) -> None:
        self.kind = kind
        self._message = message
        self._remedy = remedy
        self._cause = cause

    def error(self) -> ClonepoolError:
        """Return another exception for each who is told: a traceback belongs to one thread."""
        error = self.kind(self._message, remedy=self._remedy)
        error.__cause__ = self._cause
        return error
