"""`python -m clonepool` in a process of its own, without importing everything each time.

A daemon's imports take more processor time than its start. So one process a pytest worker imports
them once (`_serve`), and each daemon is a fork of it that then runs as `python -m` would: with its
own arguments, environment, directory and output, and with the interpreter's own ending. Tests of
how the program itself is started (signals before it is up, `systemd`, a wrapper) use `subprocess`.
"""

from __future__ import annotations

import array
import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MESSAGE_BYTES = 1 << 20


class Process(Protocol):
    """What tests use of a process: a part of `subprocess.Popen`."""

    returncode: int | None

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended.

        Raises:
            TimeoutExpired: it still runs after that time.
        """

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it is known to have ended."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


class Forked:
    """A process that the fork server started, and reaps when it is asked to."""

    def __init__(self, server: _ForkServer, pid: int) -> None:
        self.returncode: int | None = None
        self._server = server
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)

    @property
    def pid(self) -> int:
        return self._pid

    def poll(self) -> int | None:
        return self._end(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._end(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(["clonepool"], timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._descriptor, select.POLLIN)
            if ended.poll(None if timeout is None else timeout * 1000):
                self.returncode = self._server.ask({"reap": self._pid})
                os.close(self._descriptor)
        return self.returncode


def run_module(
    module: str, arguments: Sequence[str], output: int, environment: Mapping[str, str] = os.environ
) -> Process:
    """Start `python -m module` with these arguments.

    Args:
        module: one that runs as a program.
        arguments: what `sys.argv` has after the program's name.
        output: the descriptor of its standard output and error.
        environment: all of its environment.
    """
    server = _fork_server()
    order = {
        "module": module,
        "arguments": list(arguments),
        "environment": dict(environment),
        "directory": os.getcwd(),  # noqa: PTH109 - as the system names it
    }
    return Forked(server, server.ask(order, output))


class _ForkServer:
    """This process's end: orders go out, numbers come back."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "support.processes", str(theirs.fileno())]
            place = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 - no Path is needed
            paths = [place, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C is for pytest, which then ends the daemons
            )
        atexit.register(self.close)

    def ask(self, order: Mapping[str, object], *descriptors: int) -> int:
        socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
        answer = self._socket.recv(_MESSAGE_BYTES)
        if not answer:
            raise RuntimeError("the fork server ended")
        number: int = json.loads(answer)
        return number

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def _fork_server() -> _ForkServer:
    return _ForkServer()


def _serve(orders: socket.socket) -> dict[str, Any]:
    """Fork for each order, and return in the child with what it was ordered to run.

    When the worker is gone, whatever ended it, the daemons that it left are told to stop.
    """
    children: set[int] = set()
    while True:
        text, ancillary, _, _ = orders.recvmsg(_MESSAGE_BYTES, socket.CMSG_LEN(4))
        if not text:
            for left in children:
                os.kill(left, signal.SIGTERM)
            raise SystemExit(0)
        order: dict[str, Any] = json.loads(text)
        if "reap" in order:
            _, status = os.waitpid(order["reap"], 0)
            children.discard(order["reap"])
            orders.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        (output,) = array.array("i", ancillary[0][2])
        child = os.fork()
        if not child:
            orders.close()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            return order
        os.close(output)
        children.add(child)
        orders.send(json.dumps(child).encode())


def _become(order: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    sys.argv = [order["module"], *order["arguments"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def _preload() -> None:
    import uvloop  # noqa: F401, PLC0415 - imported here, for every fork

    import clonepool.cli.serve_command  # noqa: PLC0415
    import clonepool.service.app  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _preload()
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
