"""Telling systemd how we are (sd_notify(3)); without it, nothing."""

from __future__ import annotations

import os
import socket

import structlog

log = structlog.get_logger()


class Manager:
    """Whoever set NOTIFY_SOCKET, or nobody.

    Connected to once, at the start: what is to be told must not want for a file later.
    """

    def __init__(self, sender: socket.socket | None) -> None:
        self._sender = sender

    def tell(self, state: str) -> None:
        """Send a state such as READY=1; that it cannot be sent stops nothing."""
        if self._sender is None:
            return
        try:
            self._sender.sendall(state.encode())
        except OSError as error:
            log.warning("systemd.not_told", state=state, error=str(error))

    def close(self) -> None:
        """Tell nothing more."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def connect() -> Manager:
    """Return the way to who started us; where there is none, nobody is told."""
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
