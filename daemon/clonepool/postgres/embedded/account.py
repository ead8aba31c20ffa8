"""The unprivileged user that PostgreSQL runs as when the daemon is root."""

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
"""Who owns nothing else: whoever leases can run programs as this user. Debian's `postgres` owns the
machine's own clusters."""


class Account(msgspec.Struct, frozen=True):
    """Who runs PostgreSQL; `switch` when that is somebody else than the daemon."""

    name: str
    uid: int
    gid: int
    switch: bool

    def popen_arguments(self) -> dict[str, Any]:
        """Return the arguments that make subprocess run a program as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def own(self, path: Path) -> None:
        """Give a file or directory to this user."""
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def can_enter(self, directory: Path) -> bool:
        """Say whether this user may reach what is below the directory."""
        if not self.switch:
            return True
        places = {*_way_to(directory), *_way_to(directory.resolve())}
        return all(self._may_search(place) for place in places)

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


def _way_to(directory: Path) -> tuple[Path, ...]:
    return (directory, *directory.parents)


def name_of(uid: int) -> str:
    """Return a user's name: PostgreSQL and its programs do not run for one that has none.

    Raises:
        EmbeddedServerError: it has none, as in a container that is run with any id.
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise EmbeddedServerError(
            f"user id {uid} has no name, and PostgreSQL runs for no user without one",
            remedy=f'add "clonepool:x:{uid}:{os.getegid()}::/tmp:/sbin/nologin" to /etc/passwd in'
            " the image, or preload libnss_wrapper.so with NSS_WRAPPER_PASSWD and"
            " NSS_WRAPPER_GROUP, or run the container as a user that it has",
        ) from None


def choose_account(wanted: str) -> Account:
    """Return the user to run PostgreSQL as: this one, or for root one that is not root.

    Args:
        wanted: a user's name, or an empty string for the first of clonepool and nobody.

    Raises:
        EmbeddedServerError: no such user, or only root may become another.
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
