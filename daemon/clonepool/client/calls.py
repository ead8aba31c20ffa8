"""Records of `connection`: one request, and the reason why a connection ended."""

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
        sent: numbers of bytes of its line that were sent, one for each write.
        gate: a lock at which its thread waits while another thread reads; unlocked to wake it.
        abandoned: whether its caller has left, so that whatever is granted must be given back.
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
        """Wake its thread; return whether the thread was asleep and had not been woken yet."""
        if self.gate is None:
            return False
        try:
            self.gate.release()
        except RuntimeError:
            return False
        return True


class End:
    """Why a connection is of no more use."""

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
        """Return a new exception for each caller: a traceback belongs to one thread."""
        error = self.kind(self._message, remedy=self._remedy)
        error.__cause__ = self._cause
        return error
