"""One connection that threads and interrupts can share.

Several calls may be under way. There is no thread of our own: whoever waits for a reply and finds
nobody reading reads, and hands the others theirs. Likewise whoever finds nobody sending sends what
all have queued. Leases, and what is asked of the daemon, are not this module's matter but for one
thing: what is to be done when a caller has gone before it got its answer.

**An exception may come out of any instruction** of a thread that waits: a signal's handler raised
it (Ctrl-C, pytest-timeout), or another thread sent it. Three rules keep that harmless:

- The two roles, reading and sending, are entries of `_busy`, taken by `setdefault` inside the `try`
  whose `finally` gives them back, and given back without a call, so that nothing can come between.
- What the socket returns, bytes read or how many were sent, goes into a list within the same call
  into C (`extend(map(recv, …))`): CPython raises only between instructions, so what was
  read or sent is always written down. Whatever is done with it can be done again by the next one.
- What a second interrupt keeps a thread from, in the middle of dealing with the first, is made up
  for: requests to be taken back are written down before anything else and seen to by the next call,
  and whoever waits and does not read looks again each second whether it is to.

Nothing here takes a lock, so finalizers and the child of a fork never wait for one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from _thread import allocate_lock
from _weakrefset import WeakSet  # as in threading; all of weakref takes half as long as all of ours
from collections import deque

from clonepool.client.calls import Call, End
from clonepool.errors import ClientClosedError, ConnectionLostError
from clonepool.protocol.client import ClientConnection, NotAReplyError, Reply

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from clonepool.protocol.client import Notification

_READ_SIZES = (65_536,)
_SEND_FLAGS = (socket.MSG_NOSIGNAL,)
_NEVER_WAIT = (socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT,)
_LOOK_AGAIN_SECONDS = 1.0
_CANCEL_SECONDS = 1.0
"""How long an interrupted call waits to hear that it was taken back; a daemon answers at once."""

_READING, _SENDING, _TELLING = "reading", "sending", "telling"
_CANCELLABLE = frozenset({"acquire", "reset", "define", "drain"})

_open: WeakSet[Connection] = WeakSet()


class Connection:
    """A connected socket, and the calls that are under way on it.

    Args:
        connected: the socket; it is closed by `close` alone.
        on_notification: see `Client`.
    """

    def __init__(
        self,
        connected: socket.socket,
        on_notification: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        connected.settimeout(None)  # whatever socket.setdefaulttimeout says
        self.socket = connected
        self._recv, self._send = connected.recv, connected.send
        self._on_notification = on_notification
        self._protocol = ClientConnection()
        self._pending: dict[int, Call] = {}
        self._outgoing: deque[Call] = deque()
        self._busy: dict[str, Call] = {}
        self._followers: dict[Call, None] = {}
        self._news: deque[Notification] = deque()
        self._left_behind: dict[Call, None] = {}
        self._not_sent: OSError | None = None
        self._end: End | None = None
        self._closed = False
        self._owner = os.getpid()
        _open.add(self)

    @property
    def has_ended(self) -> bool:
        """Whether it is known to be of no use any more."""
        return self._end is not None

    def ask(
        self,
        method: str,
        params: dict[str, Any],
        make: Callable[[Any], Any] | None = None,
        *,
        instead_of: str | None = None,
    ) -> Any:
        """Send a request, wait for its result, and return what `make` makes of it.

        When an exception ends the wait or `make`, the request is taken back where it can be, and
        what was granted, or will be, is given back: the lease of an `acquire` or a `reset`, the
        database of a `define`.

        Args:
            method: of the protocol.
            params: those that are None are left out.
            make: what is to be made of the result, None to return it as it is.
            instead_of: the token of a lease that is released before, by the same write. If that is
                refused, the request is taken back and the refusal raised.

        Raises:
            ClonepoolError: what the daemon answered, as the class of its code.
            ConnectionLostError: the connection has ended.
            BadRequestError: the request cannot be sent; nothing was.
        """
        release = None
        if instead_of is not None:
            release = Call(*self._numbered("release", {"lease": instead_of}))
        call = Call(*self._numbered(method, params))
        if self._left_behind:
            self._take_back_what_was_left()
        try:
            self._begin(call, release)
            reply = None if release is None else self._reply_to(release)
            if reply is not None and reply.error is not None:
                self._give_up(call)
            else:
                reply = self._reply_to(call)
                if reply.error is None:
                    return reply.result if make is None else make(reply.result)
        except BaseException:
            self._left_behind[call] = None  # no call, so that it is there if this is interrupted
            self._give_up(call)
            raise
        try:
            raise reply.error
        finally:
            # Else the error is part of a cycle, and keeps its caller's leases.
            del reply, call, release

    def post(self, method: str, **params: object) -> None:
        """Send a request whose answer nobody wants, now or with the next one; never waits.

        Good for finalizers: they run in any thread, at any moment, also within other methods.
        """
        if self._end is None:
            call = Call(*self._numbered(method, params))
            self._outgoing.append(call)
            self._push(call, _NEVER_WAIT)

    def close(self, *, to_reconnect: bool = False) -> None:
        """End the connection: whoever waits is told, nothing can be asked any more.

        May be called again, from any thread, and from signal handlers.

        Args:
            to_reconnect: whether the client goes on with another connection.
        """
        self._closed = True
        if to_reconnect:
            self._lose(None)
        else:
            self._finish(End(ClientClosedError, "the client is closed", "make another Client"))
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        self._close_socket()

    def leave_to_parent(self) -> None:
        """In the child of a fork: let go of the parent's socket without a word to the daemon."""
        self._closed = True
        self._end = End(
            ClientClosedError,
            f"the client belongs to process {self._owner}, from which this one was forked",
            "make a Client in the child",
        )
        self._busy, self._followers, self._pending = {}, {}, {}
        self.socket.close()

    # Sending ------------------------------------------------------------------------------

    def _numbered(self, method: str, params: dict[str, Any]) -> tuple[int, str, bytes]:
        number, line = self._protocol.request(method, params)
        return number, method, line

    def _begin(self, call: Call, before: Call | None = None) -> None:
        """Send a call's line, or leave it to the thread that is sending.

        Args:
            call: what is sent.
            before: goes out with it, and first. There is no point between the steps at which an
                interrupt could part the two.
        """
        if self._end is not None:
            self._raise_end()
        if before is not None:
            call.line = before.line + call.line
            self._pending[before.id] = before
        self._pending[call.id] = call
        self._outgoing.append(call)
        self._push(call, _SEND_FLAGS)

    def _push(self, by: Call, flags: tuple[int]) -> None:
        """Send what is queued, unless somebody is at it: that one sends this too."""
        busy, ours = self._busy, True
        while self._outgoing and ours:
            try:
                ours = busy.setdefault(_SENDING, by) is by and self._send_queued(flags)
            finally:
                if _SENDING in busy and busy[_SENDING] is by:
                    del busy[_SENDING]
        if self._closed:
            self._close_socket()

    def _send_queued(self, flags: tuple[int]) -> bool:
        """Send until nothing is queued; return whether there is more to be done about it."""
        queue = self._outgoing
        try:
            while queue and self._end is None:
                first = queue[0]
                left = first.line[sum(first.sent) :] if first.sent else first.line
                first.sent.extend(map(self._send, (left,), flags))
                if first.sent[-1] == len(left):
                    queue.popleft()
        except OSError as error:
            if not _is_the_sockets(error):
                raise
            if error.errno == errno.EAGAIN:
                return False
            self._not_sent = error  # the daemon may have said why before it closed: that is read
            queue.clear()
        return self._end is None

    # Receiving ----------------------------------------------------------------------------

    def _reply_to(self, call: Call) -> Reply:
        self._wait(call, None)
        if call.reply is None:
            self._raise_end()
        return call.reply

    def _wait(self, call: Call, until: float | None) -> None:
        """Return when the call is answered, the connection has ended, or it is `until`."""
        busy = self._busy
        try:
            while call.reply is None and self._end is None:
                if busy.setdefault(_READING, call) is call:
                    self._read(call, until)
                else:
                    self._follow(call, until)
                if self._news and until is None:  # what a listener raises would stop a taking back
                    if _READING in busy and busy[_READING] is call:
                        del busy[_READING]
                        self._wake_follower()
                    self._tell(call)
                if until is not None and time.monotonic() >= until:
                    break
        finally:
            if _READING in busy and busy[_READING] is call:
                del busy[_READING]
            if call.gate is not None:
                self._followers.pop(call, None)
            if self._followers:
                self._wake_follower()
            if self._closed:
                self._close_socket()

    def _read(self, call: Call, until: float | None) -> None:
        """Read once, for all."""
        if self._end is not None:  # again, now that nobody closes the socket any more
            return
        pieces = self._protocol.pieces
        if b"\n" not in pieces[-1]:  # else a reader was interrupted before it dealt with that
            if until is not None or self._outgoing:
                self._check_thread(_SENDING, call)
                if not self._is_readable(until):
                    self._push(call, _SEND_FLAGS)
                    return
            try:
                pieces.extend(map(self._recv, _READ_SIZES))
            except OSError as error:
                if not _is_the_sockets(error):
                    raise
                self._lose(error)
                return
            if not pieces[-1]:
                self._lose(self._not_sent)
                return
        self._hand_out()
        if self._outgoing:
            self._push(call, _SEND_FLAGS)

    def _hand_out(self) -> None:
        """Give each reply to its call. An interrupted one is done again from the beginning."""
        try:
            messages, rest = self._protocol.complete()
        except NotAReplyError as error:
            self._lose(error)
            return
        for message in messages:
            if isinstance(message, Reply):
                self._answer(message)
            else:
                self._news.append(message)
        self._protocol.pieces = rest

    def _answer(self, reply: Reply) -> None:
        call = self._pending.get(reply.id)
        if call is not None:
            call.reply = reply
            if call.gate is not None:
                call.wake()
            if call.abandoned:
                self._undo(call)
            self._pending.pop(call.id, None)
        elif reply.id is None and reply.error is not None:
            error = reply.error
            self._finish(End(type(error), str(error), error.remedy))

    def _follow(self, call: Call, until: float | None) -> None:
        """Wait while another thread reads."""
        if call.gate is None:
            gate = allocate_lock()
            gate.acquire()
            call.gate = gate
            self._followers[call] = None
            return  # to look again: from now on it is woken
        self._check_thread(_READING, call)
        call.gate.acquire(True, _patience(until))
        if self._outgoing:
            self._push(call, _SEND_FLAGS)

    def _check_thread(self, role: str, call: Call) -> None:
        """See that it is another thread that we wait for: else we wait for ever."""
        other = self._busy.get(role)
        if other is not None and other is not call and other.thread == call.thread:
            raise RuntimeError(
                "a signal handler or a finalizer used a Client in the middle of a call of the same"
                " thread; raise an exception from it, close the client, or use another one"
            )

    def _wake_follower(self) -> None:
        """Let another thread that waits take over to read."""
        for follower in list(self._followers):
            if follower.reply is None and follower.wake():
                return

    def _is_readable(self, until: float | None) -> bool:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(_patience(until) * 1000))

    def _tell(self, call: Call) -> None:
        """Pass notifications on in order, one thread at a time; others may read meanwhile."""
        busy, ours = self._busy, True
        while self._news and ours:
            try:
                ours = busy.setdefault(_TELLING, call) is call
                while ours and self._news:
                    news = self._news.popleft()
                    if self._on_notification is not None:
                        self._on_notification(news.method, news.params)
            finally:
                if _TELLING in busy and busy[_TELLING] is call:
                    del busy[_TELLING]

    # Taking back --------------------------------------------------------------------------

    def _give_up(self, call: Call) -> None:
        """Leave a call whose caller goes on with an exception; afterwards nothing is held by it."""
        if self._is_to_be_cancelled(call):
            self._cancel(call)
        if self._outgoing and self._end is None:
            self._push(call, _SEND_FLAGS)
        self._left_behind.pop(call, None)

    def _take_back_what_was_left(self) -> None:
        """Do for interrupted calls what a further interrupt has kept them from, and do not wait."""
        for call in list(self._left_behind):
            if self._is_to_be_cancelled(call):
                self.post("cancel", request=call.id)
            self._left_behind.pop(call, None)

    def _is_to_be_cancelled(self, call: Call) -> bool:
        """Undo what a call was granted, or see that it will be; say whether it may still wait."""
        call.abandoned = True  # before the look at the reply: whoever comes second undoes it
        if call.reply is not None:
            self._undo(call)
            return False
        return call.id in self._pending and call.method in _CANCELLABLE

    def _cancel(self, call: Call) -> None:
        """Take a request back, and wait a moment for the answer: it may come granted."""
        cancel = Call(*self._numbered("cancel", {"request": call.id}))
        with contextlib.suppress(ConnectionLostError):
            self._begin(cancel)
            self._wait(cancel, time.monotonic() + _CANCEL_SECONDS)
        if cancel.reply is not None and cancel.reply.error is None and call.reply is None:
            self._pending.pop(call.id, None)  # it was never sent: replies to both come in order

    def _undo(self, call: Call) -> None:
        """Give back what a reply granted to nobody. Doing so twice is harmless."""
        reply = call.reply
        if reply is None or reply.error is not None:
            return
        result = reply.result
        if call.method in {"acquire", "reset"}:
            self.post("release", lease=result["lease"])
        elif call.method == "define" and not result["filled"]:
            self.post("finalize", definition=result["definition"], abandon=True)

    # The end ------------------------------------------------------------------------------

    def _lose(self, cause: BaseException | None) -> None:
        self._finish(
            End(
                ConnectionLostError,
                "the daemon closed the connection",
                "see the daemon's log",
                cause,
            )
        )

    def _finish(self, end: End) -> None:
        """Let nobody wait any more."""
        if self._end is None or end.kind is ClientClosedError:
            self._end = end
        for follower in list(self._followers):
            follower.wake()

    def _raise_end(self) -> NoReturn:
        raise ConnectionLostError("no reply has come") if self._end is None else self._end.error()

    def _close_socket(self) -> None:
        """Close it when nobody is about to use it: its number may be another file's right away."""
        if _READING not in self._busy and _SENDING not in self._busy:
            self.socket.close()


def _patience(until: float | None) -> float:
    """Return how long to wait at most before looking again, in seconds."""
    if until is None:
        return _LOOK_AGAIN_SECONDS
    return max(0.0, min(_LOOK_AGAIN_SECONDS, until - time.monotonic()))


def _is_the_sockets(error: OSError) -> bool:
    """Say whether the socket failed; else a signal's handler raised, a TimeoutError perhaps."""
    traceback = error.__traceback__
    return error.errno is not None and traceback is not None and traceback.tb_next is None


def _leave_to_parent() -> None:
    for connection in list(_open):
        connection.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)
