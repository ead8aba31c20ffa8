"""Tells systemd the state of the daemon (sd_notify(3)), where systemd started it."""

from __future__ import annotations

import os
import socket

import structlog

log = structlog.get_logger()


class Manager:
    """The service manager that set NOTIFY_SOCKET, if any.

    Connected to once, at the start, so that telling it something later takes no file.

    Args:
        sender: the connected socket; None where there is no service manager.
    """

    def __init__(self, sender: socket.socket | None) -> None:
        self._sender = sender

    def tell(self, state: str) -> None:
        """Send a state such as READY=1; a failure is logged and otherwise ignored."""
        if self._sender is None:
            return
        try:
            self._sender.sendall(state.encode())
        except OSError as error:
            log.warning("systemd.not_told", state=state, error=str(error))

    def close(self) -> None:
        """Close the socket; nothing is told after that."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def connect() -> Manager:
    """Return the service manager that started the daemon."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return Manager(None)
    if address.startswith("@"):
        address = "\0" + address[1:]
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sender.connect(address)
    except OSError as error:
        sender.close()
        log.warning("systemd.not_told", error=str(error))
        return Manager(None)
    return Manager(sender)
