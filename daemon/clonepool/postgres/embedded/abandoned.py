"""Clusters in memory that nobody will use again: their state directory was deleted.

What is removed must be ours by its user, its name and what is in it; must name a state directory
that is gone; no daemon may use it, which its lock tells whatever became of the state directory; and
no server may run on it. A server that still runs there can't be adopted by anybody any more: it is
told to end when nobody is connected. Whatever is in doubt is left, and the log says why.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from clonepool.errors import EmbeddedServerError
from clonepool.postgres.embedded import claims, postmaster
from clonepool.postgres.embedded.claims import Whereabouts
from clonepool.postgres.embedded.storage import CONTENTS, Storage, memory_name

log = structlog.get_logger()

_BLOCK_BYTES = 512
_SWEPT = "swept"
"""In the names of clusters whose removal was begun."""
_REMEDY = "remove it if it is not needed any more; end its server before, if it runs"


async def sweep(memory: Path, spare: str) -> None:
    """Remove the clusters of this user whose state directory is gone; fails for none of them.

    Args:
        memory: the directory in which they lie.
        spare: the name of our own, which is let be.
    """
    for root in _of_user(memory, os.geteuid()):
        if root.name != spare:
            try:
                await _look(root)
            except (OSError, EmbeddedServerError, RecursionError) as error:
                # The last: directories in directories, deeper than the stack, that a lease made.
                _left(root, f"it cannot be removed: {error}")


def _of_user(memory: Path, user: int) -> list[Path]:
    """Return the directories, and no links, that are ours by name and user."""
    ours = re.compile(rf"clonepool-{user}-[0-9a-f]{{8}}(\.{_SWEPT}-[0-9a-f]{{8}})?")
    try:
        names = sorted(filter(ours.fullmatch, os.listdir(memory)))  # noqa: PTH208 - the names alone
    except OSError:
        return []
    return [memory / name for name in names if _is_own_directory(memory / name, user)]


def _is_own_directory(place: Path, user: int) -> bool:
    try:
        status = place.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user


async def _look(root: Path) -> None:
    if root.suffix:  # a daemon was killed while it removed it
        await anyio.to_thread.run_sync(_remove, root)
        return
    if _removed_empty(root):
        return
    claim = claims.read(root)
    if claim is None or memory_name(os.geteuid(), claim.state) != root.name:
        _unknown(root, "it does not say whose it is: an earlier version made it")
        return
    match claims.look_for(claim):
        case Whereabouts.DELETED:
            await _sweep_one(root, claim)
        case Whereabouts.OUT_OF_SIGHT:
            _unknown(root, f"its state directory {claim.state} can't be seen from here")


async def _sweep_one(root: Path, claim: claims.Claim) -> None:
    began = anyio.current_time()
    with claims.nobody_else(root) as alone:
        if not alone:
            _left(root, f"its state directory {claim.state} is gone, and its daemon still runs")
            return
        # Again: its daemon may have been started between the first look and the lock.
        back = claims.look_for(claim) is not Whereabouts.DELETED
        reason = "its state directory is back" if back else None
        reason = reason or _foreign(root) or await _end_server(root)
        if reason:
            _left(root, reason)
            return
        aside = _renamed(root)
    used = await anyio.to_thread.run_sync(_remove, aside)
    log.info(
        "cluster.swept",
        storage=str(root),
        state=claim.state,
        reason="its state directory was deleted",
        bytes=used,
        duration_seconds=round(anyio.current_time() - began, 3),
    )


def _removed_empty(root: Path) -> bool:
    """Remove it if it is empty: a daemon was killed before it had made more."""
    try:
        root.rmdir()
    except OSError:
        return False
    return True


def _renamed(root: Path) -> Path:
    """Take it out of the way at once: a daemon that starts meanwhile makes another."""
    aside = root.with_name(f"{root.name}.{_SWEPT}-{secrets.token_hex(4)}")
    root.rename(aside)
    return aside


def _foreign(root: Path) -> str | None:
    """Say what keeps it from being only ours."""
    others = sorted(set(os.listdir(root)) - CONTENTS)  # noqa: PTH208 - the names alone
    if others:
        return f"it has something that is not ours: {others[0]}"
    if any(place == str(root) or place.startswith(f"{root}/") for place in _mount_points()):
        return "a file system is mounted in it"
    return None


def _mount_points() -> list[str]:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return [line.split()[4] for line in mounts.splitlines()]


async def _end_server(root: Path) -> str | None:
    """Let an orphaned server end by itself; say so when somebody is still connected to it."""
    storage = Storage(root, in_memory=True)
    running = postmaster.find_running(storage) or await anyio.to_thread.run_sync(
        postmaster.search, storage
    )
    if running is None or await running.retire():
        return None
    return "clients are connected to its server, which ends with the last of them"


def _remove(root: Path) -> int:
    """Delete it, following no link; return how many bytes that gives back."""
    used = sum(
        _size(name, directory) for _, _, names, directory in os.fwalk(root) for name in names
    )
    shutil.rmtree(root, ignore_errors=True)
    return used


def _size(name: str, directory: int) -> int:
    with contextlib.suppress(OSError):
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * _BLOCK_BYTES
    return 0


def _unknown(root: Path, reason: str) -> None:
    """Say that it stays; a person need not look into it while its daemon may live."""
    log.info("cluster.unclaimed", storage=str(root), reason=reason, remedy=_REMEDY)


def _left(root: Path, reason: str) -> None:
    log.warning("cluster.left", storage=str(root), reason=reason, remedy=_REMEDY)
