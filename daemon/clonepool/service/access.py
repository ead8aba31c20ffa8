"""Who may use the socket: asked of the kernel, which cannot be lied to."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from clonepool.errors import ConfigError

if TYPE_CHECKING:
    from clonepool.config import AccessSection

_UCRED = struct.Struct("3i")


class Caller(msgspec.Struct, frozen=True):
    """The process at the other end of a connection, as it was when it connected."""

    pid: int
    uid: int
    gid: int


class Gatekeeper:
    """Lets in the daemon's own user, root, and those that the configuration names.

    Raises:
        ConfigError: a configured user or group does not exist.
    """

    def __init__(self, section: AccessSection) -> None:
        try:
            self._users = {pwd.getpwnam(name).pw_uid for name in section.allow_users}
        except KeyError as error:
            raise ConfigError(f"access.allow_users: {error.args[0]}") from None
        try:
            self._groups = {grp.getgrnam(name).gr_gid for name in section.allow_groups}
        except KeyError as error:
            raise ConfigError(f"access.allow_groups: {error.args[0]}") from None
        self._users |= {0, os.geteuid()}

    def admits(self, caller: Caller) -> bool:
        """Say whether the caller may come in."""
        if caller.uid in self._users or caller.gid in self._groups:
            return True
        return bool(self._groups) and not self._groups.isdisjoint(_groups_of(caller))


def identify(connection: socket.socket) -> Caller:
    """Ask the kernel who is at the other end."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Caller(*_UCRED.unpack(packed))


def _groups_of(caller: Caller) -> list[int]:
    try:
        name = pwd.getpwuid(caller.uid).pw_name
    except KeyError:
        return []
    return os.getgrouplist(name, caller.gid)
