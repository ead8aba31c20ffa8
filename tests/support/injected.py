"""Runs the daemon and makes the n-th file that it opens from some moment on fail to open.

Run as a program in place of `python -m clonepool`. What is armed comes by a socket beside the
configuration: a number, and then how many files are opened until the failure is answered.
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import anyio

_real_socket = socket.socket


class Failure:
    """Fails once, at the n-th call; 0 means never."""

    def __init__(self) -> None:
        self.left = 0
        self.lock = threading.Lock()

    def wrap(self, function: Any) -> Any:
        @functools.wraps(function)
        def called(*arguments: Any, **options: Any) -> Any:
            with self.lock:
                self.left -= self.left > 0
                fails = self.left == 0 and self.armed
                if fails:
                    self.armed = False
            if fails:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return function(*arguments, **options)

        return called

    armed = False

    def arm(self, number: int) -> bool:
        """Arm it anew; say whether what was armed before has happened."""
        with self.lock:
            happened = not self.armed
            self.left, self.armed = number, number > 0
        return happened


failure = Failure()


class FailingSocket(socket.socket):
    """A socket that may not be had; one that is made of a file that is open takes no other."""

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - socket's own signature
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        begin = super().__init__ if fileno is not None else failure.wrap(super().__init__)
        begin(family, type, proto, fileno)


def _listen(path: str) -> None:
    control = _real_socket(socket.AF_UNIX)
    control.bind(path)
    control.listen()
    while True:
        caller, _ = control.accept()
        number = int(caller.recv(100))
        caller.sendall(b"yes" if failure.arm(number) else b"no")
        caller.close()


def _patch() -> None:
    for place, name in (
        (builtins, "open"), (io, "open"), (os, "open"), (os, "scandir"), (os, "listdir"),
        (os, "pipe"), (subprocess, "Popen"),
    ):  # fmt: skip
        wrapped = failure.wrap(getattr(place, name))
        setattr(place, name, wrapped)
    socket.socket = FailingSocket  # type: ignore[misc]
    run = anyio.run

    def run_plainly(*arguments: Any, **options: Any) -> Any:
        options.pop("backend_options", None)  # uvloop opens its sockets in C
        return run(*arguments, **options)

    anyio.run = run_plainly  # type: ignore[assignment]


if __name__ == "__main__":
    threading.Thread(target=_listen, args=(sys.argv.pop(1),), daemon=True).start()
    from clonepool.cli import main

    _patch()
    main()
