"""A connection that threads share and that interrupts leave intact.

Several calls may be in progress. No thread is started: a thread that waits for a reply reads if no
other thread does, and hands the others their replies. In the same way a thread sends what all have
queued if no other thread does. What requests mean is not this module's concern, except for one
thing: what must be undone when a caller leaves before its reply has come.

**An exception may be raised at any instruction** of a waiting thread: by a signal handler (Ctrl-C,
pytest-timeout), or by another thread. Three rules make that harmless:

- The roles, reading and sending, are entries of `_busy`. They are taken by `setdefault` inside the
  `try` whose `finally` gives them back, and given back without a call, so that no exception can
  be raised in between.
- What the socket returns, the bytes read or the number of bytes sent, is stored within the same
  call into C (`extend(map(recv, …))`). CPython raises exceptions between instructions only, so it
  is always stored, and each step that processes it can be repeated by the next thread.
- A second interrupt, while the first is being dealt with, leaves work behind: requests to cancel
  are recorded before anything else and are cancelled by the next call, and a thread that waits
  without reading checks once a second whether it should read.

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
from _weakrefset import (
    WeakSet,
)  # as in threading; importing weakref takes half as long as the client
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
"""Seconds after which a waiting thread that does not read checks whether it should."""
_CANCEL_SECONDS = 1.0
"""Seconds that an interrupted call waits for the reply to its cancellation, which comes at once."""

_READING, _SENDING, _TELLING = "reading", "sending", "telling"
_CANCELLABLE = frozenset({"acquire", "reset", "define", "drain"})

_open: WeakSet[Connection] = WeakSet()


class Connection:
    """A connected socket, and the calls that are in progress on it.

    Args:
        connected: the socket; only `close` closes it.
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
        """Whether the connection is known to have ended."""
        return self._end is not None

    def ask(
        self,
        method: str,
        params: dict[str, Any],
        make: Callable[[Any], Any] | None = None,
        *,
        instead_of: str | None = None,
    ) -> Any:
        """Send a request, wait for its result, and return `make`'s return value for it.

        If an exception ends the wait or `make`, the request is cancelled where possible, and what
        was granted, or will be, is given back: the lease of an `acquire` or a `reset`, the database
        of a `define`.

        Args:
            method: a method of the protocol.
            params: its parameters; those that are None are left out.
            make: called with the result; None to return the result itself.
            instead_of: the token of a lease to release first, in the same write. If the release is
                refused, the request is cancelled and the refusal is raised.

        Raises:
            ClonepoolError: the daemon's error, as the class of its code.
            ConnectionLostError: the connection has ended.
            BadRequestError: the request cannot be encoded; nothing was sent.
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
            self._left_behind[call] = None  # not by a function call, which could be interrupted
            self._give_up(call)
            raise
        try:
            raise reply.error
        finally:
            # Otherwise the error is part of a cycle, which keeps its caller's leases alive.
            del reply, call, release

    def post(self, method: str, **params: object) -> None:
        """Send a request and ignore its reply; never waits. What cannot be sent goes with the next.

        Finalizers may use it: they run in any thread, at any moment, even within other methods.
        """
        if self._end is None:
            call = Call(*self._numbered(method, params))
            self._outgoing.append(call)
            self._push(call, _NEVER_WAIT)

    def close(self, *, to_reconnect: bool = False) -> None:
        """Close the connection: calls that wait raise an error, as do later ones.

        May be called again, from any thread, and from signal handlers.

        Args:
            to_reconnect: whether the client continues with another connection.
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
        """In the child of a fork: close the inherited socket, and send nothing over it."""
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
            call: the call.
            before: a call whose line is sent first, in the same piece, so that an interrupt finds
                both sent or neither.
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
        """Send what is queued, unless another thread is sending, which then sends this too."""
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
        """Send until the queue is empty; return whether the connection can send more."""
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
            self._not_sent = error  # the daemon may have sent the reason before it closed
            queue.clear()
        return self._end is None

    # Receiving ----------------------------------------------------------------------------

    def _reply_to(self, call: Call) -> Reply:
        self._wait(call, None)
        if call.reply is None:
            self._raise_end()
        return call.reply

    def _wait(self, call: Call, until: float | None) -> None:
        """Return when the call has a reply, the connection has ended, or at the time `until`."""
        busy = self._busy
        try:
            while call.reply is None and self._end is None:
                if busy.setdefault(_READING, call) is call:
                    self._read(call, until)
                else:
                    self._follow(call, until)
                if self._news and until is None:  # a listener's error would stop a cancellation
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
        """Read once, and hand out the replies of all calls."""
        if self._end is not None:  # checked again: from now on no other thread closes the socket
            return
        pieces = self._protocol.pieces
        if b"\n" not in pieces[-1]:  # otherwise a reader was interrupted before it used this
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
        """Give each reply to its call. When interrupted, it is repeated from the beginning."""
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
            return  # the caller checks again: from now on this thread can be woken
        self._check_thread(_READING, call)
        call.gate.acquire(True, _patience(until))
        if self._outgoing:
            self._push(call, _SEND_FLAGS)

    def _check_thread(self, role: str, call: Call) -> None:
        """Check that another thread has the role: a thread must not wait for itself."""
        other = self._busy.get(role)
        if other is not None and other is not call and other.thread == call.thread:
            raise RuntimeError(
                "a signal handler or a finalizer used a Client in the middle of a call of the same"
                " thread; raise an exception from it, close the client, or use another one"
            )

    def _wake_follower(self) -> None:
        """Wake another waiting thread, so that it reads."""
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

    # Cancelling ---------------------------------------------------------------------------

    def _give_up(self, call: Call) -> None:
        """Abandon a call whose caller continues with an exception, so that it holds nothing."""
        if self._is_to_be_cancelled(call):
            self._cancel(call)
        if self._outgoing and self._end is None:
            self._push(call, _SEND_FLAGS)
        self._left_behind.pop(call, None)

    def _take_back_what_was_left(self) -> None:
        """Finish abandoning calls for which that was itself interrupted, without waiting."""
        for call in list(self._left_behind):
            if self._is_to_be_cancelled(call):
                self.post("cancel", request=call.id)
            self._left_behind.pop(call, None)

    def _is_to_be_cancelled(self, call: Call) -> bool:
        """Give back what a call was or will be granted; return whether to cancel the call."""
        call.abandoned = True  # before the reply is looked at: one of the two threads undoes it
        if call.reply is not None:
            self._undo(call)
            return False
        return call.id in self._pending and call.method in _CANCELLABLE

    def _cancel(self, call: Call) -> None:
        """Cancel a request, and wait briefly for the reply: it may have been granted."""
        cancel = Call(*self._numbered("cancel", {"request": call.id}))
        with contextlib.suppress(ConnectionLostError):
            self._begin(cancel)
            self._wait(cancel, time.monotonic() + _CANCEL_SECONDS)
        if cancel.reply is not None and cancel.reply.error is None and call.reply is None:
            self._pending.pop(call.id, None)  # it was never sent: replies come in order

    def _undo(self, call: Call) -> None:
        """Give back what a reply granted to an abandoned call. Doing so twice is harmless."""
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
        """Record the end, and wake all threads that wait."""
        if self._end is None or end.kind is ClientClosedError:
            self._end = end
        for follower in list(self._followers):
            follower.wake()

    def _raise_end(self) -> NoReturn:
        raise ConnectionLostError("no reply has come") if self._end is None else self._end.error()

    def _close_socket(self) -> None:
        """Close the socket unless a thread may be using it: its number can be reused at once."""
        if _READING not in self._busy and _SENDING not in self._busy:
            self.socket.close()


def _patience(until: float | None) -> float:
    """Return most seconds to wait before checking again."""
    if until is None:
        return _LOOK_AGAIN_SECONDS
    return max(0.0, min(_LOOK_AGAIN_SECONDS, until - time.monotonic()))


def _is_the_sockets(error: OSError) -> bool:
    """Return whether the socket raised the error, and not a signal handler."""
    traceback = error.__traceback__
    return error.errno is not None and traceback is not None and traceback.tb_next is None


def _leave_to_parent() -> None:
    for connection in list(_open):
        connection.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)
