"""Who may use the socket. The kernel identifies the caller; nothing the caller sends counts."""

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
_GROUP = struct.Struct("I")
_SO_PEERGROUPS = 59
_GROUPS_BYTES = 4096


class Caller(msgspec.Struct, frozen=True):
    """The process at the other end of a connection, as it was when it connected.

    Attributes:
        groups: its supplementary groups; empty where the kernel does not tell them.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


class Gatekeeper:
    """Lets in the daemon's own user, root, and the users and groups in the configuration.

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
        if not self._groups.isdisjoint(caller.groups):
            return True
        # Processes of a user that was just added to a group may not have the group yet.
        return bool(self._groups) and not self._groups.isdisjoint(_groups_of(caller))


def identify(connection: socket.socket) -> Caller:
    """Ask the kernel which process is at the other end."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(packed)
    return Caller(pid, uid, gid, _peer_groups(connection))


def _peer_groups(connection: socket.socket) -> frozenset[int]:
    """Ask the kernel for the groups: the user database cannot be read when files are short."""
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:  # there are too many, or the kernel is older than 4.13
        return frozenset()
    return frozenset(group for (group,) in _GROUP.iter_unpack(packed))


def _groups_of(caller: Caller) -> list[int]:
    try:
        name = pwd.getpwuid(caller.uid).pw_name
    except KeyError:
        return []
    return os.getgrouplist(name, caller.gid)
