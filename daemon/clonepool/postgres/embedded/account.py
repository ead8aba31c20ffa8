"""The unprivileged user that PostgreSQL runs as if the daemon runs as root."""

from __future__ import annotations

import os
import pwd
import stat
from typing import TYPE_CHECKING, Any

import msgspec

from clonepool.errors import EmbeddedServerError

if TYPE_CHECKING:
    from pathlib import Path

_PREFERRED = ("clonepool", "nobody")
"""Users that own nothing else, because leases can run programs as this user. Debian's `postgres`
owns the machine's own clusters."""


class Account(msgspec.Struct, frozen=True):
    """The user that runs PostgreSQL; `switch` if that is not the daemon's own."""

    name: str
    uid: int
    gid: int
    switch: bool

    def popen_arguments(self) -> dict[str, Any]:
        """Return the arguments with which subprocess runs a program as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def own(self, path: Path) -> None:
        """Give a file or directory to this user."""
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def can_enter(self, directory: Path) -> bool:
        """Say whether this user may access what is in the directory."""
        if not self.switch:
            return True
        directories = {*_with_parents(directory), *_with_parents(directory.resolve())}
        return all(self._may_search(each) for each in directories)

    def _may_search(self, directory: Path) -> bool:
        try:
            status = directory.stat()
        except OSError:
            return False
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def _with_parents(directory: Path) -> tuple[Path, ...]:
    return (directory, *directory.parents)


def name_of(uid: int) -> str:
    """Return a user's name, which PostgreSQL and its programs require.

    Raises:
        EmbeddedServerError: the user has none, as in a container that runs with an arbitrary id.
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise EmbeddedServerError(
            f"user id {uid} has no name, and PostgreSQL refuses to run as such a user",
            remedy=f'add "clonepool:x:{uid}:{os.getegid()}::/tmp:/sbin/nologin" to /etc/passwd in'
            " the image, or preload libnss_wrapper.so with NSS_WRAPPER_PASSWD and"
            " NSS_WRAPPER_GROUP, or run the container as a user that it has",
        ) from None


def choose_account(wanted: str) -> Account:
    """Return the user to run PostgreSQL as: the present one or, for root, an unprivileged one.

    Args:
        wanted: a user's name; empty for clonepool or, if that does not exist, nobody.

    Raises:
        EmbeddedServerError: there is no such user, or the daemon does not run as root.
    """
    me = os.geteuid()
    if me != 0:
        own = name_of(me)
        if wanted not in ("", own):
            raise EmbeddedServerError(
                f"embedded.user: {own} cannot start a server as {wanted}",
                remedy="leave embedded.user empty, or start the daemon as root",
            )
        return Account(own, me, os.getegid(), switch=False)
    for name in [wanted] if wanted else _PREFERRED:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return Account(name, found.pw_uid, found.pw_gid, switch=True)
    raise EmbeddedServerError(
        f"embedded.user: no unprivileged user {wanted or 'among ' + ', '.join(_PREFERRED)}",
        remedy="PostgreSQL refuses to run as root: name an existing user that is not root",
    )
