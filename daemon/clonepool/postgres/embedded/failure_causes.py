"""What to do when a server or initdb ended: by how it ended, and what it said last."""

from __future__ import annotations

import re
import signal

_PORT = "name another embedded.port, or 0 for no TCP, or end what listens there"
_SETTINGS = "correct embedded.settings"
_MEMORY = "lower embedded.settings.shared_buffers or embedded.max_connections, or find more memory"
_ROOM = "free some, or set embedded.storage to the other of memory and disk"
_NAME = "give the user a line in /etc/passwd"
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
"""By a pattern of what was said; the first that fits counts."""
_KILLED = (
    "see whether the kernel ended it for want of memory (dmesg, or the container's limit), and give"
    " it more, or lower embedded.settings"
)


def ending(code: int) -> str:
    """Say how a process ended: `code` is its exit status, or minus the signal that ended it."""
    if code >= 0:
        return f"with exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def remedy(said: str, code: int | None, otherwise: str) -> str:
    """Return what a person can do.

    Args:
        said: by the program, in English.
        code: as of `ending`; None while it runs.
        otherwise: what to do when the cause is none of the known.
    """
    for pattern, what in REMEDIES:
        if re.search(pattern, said):
            return what
    return _KILLED if code == -signal.SIGKILL else otherwise
