"""Remedies for a server or initdb that ended, by how it ended and what it wrote last."""

from __future__ import annotations

import re
import signal

_PORT = "set embedded.port to another port, or to 0 for no TCP, or end what listens there"
_SETTINGS = "correct embedded.settings"
_MEMORY = (
    "lower embedded.settings.shared_buffers or embedded.max_connections, or provide more memory"
)
_ROOM = "free some space, or set embedded.storage to the other of memory and disk"
_NAME = "add the user to /etc/passwd"
_LIBRARY = "install the package that has it, or set embedded.binaries to another installation"
_ACCESS = "let the server's user read its programs and enter the directories above its data"
REMEDIES = (
    ("Address already in use|could not create any TCP/IP sockets", _PORT),
    ("contains errors|invalid value for param|unrecognized config|outside the valid", _SETTINGS),
    ("could not (map|create) .*shared memory|Cannot allocate memory|create semaphores", _MEMORY),
    ("No space left|Errno 28|Disk quota exceeded", _ROOM),
    ("could not look up effective user ID|user does not exist", _NAME),
    ("shared libraries|could not load library", _LIBRARY),
    ("Permission denied|Operation not permitted", _ACCESS),
)
"""Remedies by patterns of messages; the first that matches counts."""
_KILLED = (
    "check whether the kernel ended it because memory was exhausted (dmesg, or the container's"
    " limit), and provide more memory or lower embedded.settings"
)


def ending(code: int) -> str:
    """Say how a process ended; `code` is its exit status, or minus the number of a signal."""
    if code >= 0:
        return f"with exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def remedy(message: str, code: int | None, otherwise: str) -> str:
    """Return a remedy.

    Args:
        message: of the program, in English.
        code: as for `ending`; None while it runs.
        otherwise: the remedy for an unknown cause.
    """
    for pattern, found in REMEDIES:
        if re.search(pattern, message):
            return found
    return _KILLED if code == -signal.SIGKILL else otherwise
