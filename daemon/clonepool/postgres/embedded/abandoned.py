"""Removes abandoned clusters in memory: those whose state directory was deleted.

A cluster is removed only if its user, name and contents show that it is a cluster of this user's,
it names a state directory that is gone, no daemon holds its claim, and no server runs on it. A
server that still runs there cannot be adopted by any daemon: it is told to end when its last client
has left. In case of doubt a cluster is left, and the log says why.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import assert_never

import anyio
import anyio.to_thread
import structlog

from clonepool.errors import EmbeddedServerError
from clonepool.postgres.embedded import claims, postmaster
from clonepool.postgres.embedded.claims import DirectoryState
from clonepool.postgres.embedded.storage import CONTENTS, Storage, memory_name

log = structlog.get_logger()

_BLOCK_BYTES = 512
"""Unit of st_blocks."""
_SWEPT = "swept"
"""Part of the names of clusters whose removal has begun."""
_REMEDY = "remove it if it is no longer needed; end its server first, if that runs"


async def sweep(memory: Path, spare: str) -> None:
    """Remove the clusters of this user whose state directory is gone. Failures are logged.

    Args:
        memory: the directory that contains clusters.
        spare: the name of the daemon's own cluster, which is left alone.
    """
    for root in _of_user(memory, os.geteuid()):
        if root.name != spare:
            try:
                await _sweep_if_abandoned(root)
            except (OSError, EmbeddedServerError, RecursionError) as error:
                # RecursionError: a lease nested directories deeper than the stack.
                _log_left(root, f"it cannot be removed: {error}")


def _of_user(memory: Path, user: int) -> list[Path]:
    """Return the directories, without links, that are clusters by name and belong to a user."""
    ours = re.compile(rf"clonepool-{user}-[0-9a-f]{{8}}(\.{_SWEPT}-[0-9a-f]{{8}})?")
    try:
        names = sorted(filter(ours.fullmatch, os.listdir(memory)))  # noqa: PTH208 - the names alone
    except OSError:
        return []
    return [memory / name for name in names if _is_own_directory(memory / name, user)]


def _is_own_directory(path: Path, user: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user


async def _sweep_if_abandoned(root: Path) -> None:
    if root.suffix:  # a daemon was killed while it removed this
        await anyio.to_thread.run_sync(_remove, root)
        return
    if _removed_empty(root):
        return
    claim = claims.read(root)
    if claim is None or memory_name(os.geteuid(), claim.state) != root.name:
        _log_unclaimed(root, "it has no claim: an earlier version made it")
        return
    state = claims.directory_state(claim)
    match state:
        case DirectoryState.DELETED:
            await _sweep_one(root, claim)
        case DirectoryState.NOT_VISIBLE:
            _log_unclaimed(root, f"its state directory {claim.state} cannot be seen from here")
        case DirectoryState.EXISTS:
            pass
        case _:
            assert_never(state)


async def _sweep_one(root: Path, claim: claims.Claim) -> None:
    began = anyio.current_time()
    with claims.locked(root) as alone:
        if not alone:
            _log_left(root, f"its state directory {claim.state} is gone, and its daemon still runs")
            return
        # Its daemon may have been started before the claim was locked, so this is checked again.
        back = claims.directory_state(claim) is not DirectoryState.DELETED
        reason = "its state directory is back" if back else None
        reason = reason or _foreign(root) or await _end_server(root)
        if reason:
            _log_left(root, reason)
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
    """Remove a cluster if it is empty: a daemon was killed before it created more."""
    try:
        root.rmdir()
    except OSError:
        return False
    return True


def _renamed(root: Path) -> Path:
    """Rename a cluster, so that a daemon that starts in the meantime creates another one."""
    aside = root.with_name(f"{root.name}.{_SWEPT}-{secrets.token_hex(4)}")
    root.rename(aside)
    return aside


def _foreign(root: Path) -> str | None:
    """Return what is in a cluster that does not belong to it; None if nothing is."""
    others = sorted(set(os.listdir(root)) - CONTENTS)  # noqa: PTH208 - the names alone
    if others:
        return f"it contains something else: {others[0]}"
    if any(path == str(root) or path.startswith(f"{root}/") for path in _mount_points()):
        return "a file system is mounted in it"
    return None


def _mount_points() -> list[str]:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return [line.split()[4] for line in mounts.splitlines()]


async def _end_server(root: Path) -> str | None:
    """End an orphaned server; return why not, if clients are connected to it."""
    storage = Storage(root, in_memory=True)
    running = postmaster.find_running(storage) or await anyio.to_thread.run_sync(
        postmaster.search, storage
    )
    if running is None or await running.retire():
        return None
    return "clients are connected to its server, which ends with the last of them"


def _remove(root: Path) -> int:
    """Delete a cluster without following links; return how many bytes that frees."""
    used = sum(
        _size(name, directory) for _, _, names, directory in os.fwalk(root) for name in names
    )
    shutil.rmtree(root, ignore_errors=True)
    return used


def _size(name: str, directory: int) -> int:
    with contextlib.suppress(OSError):
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * _BLOCK_BYTES
    return 0


def _log_unclaimed(root: Path, reason: str) -> None:
    """Log that a cluster is left, which may still belong to a daemon."""
    log.info("cluster.unclaimed", storage=str(root), reason=reason, remedy=_REMEDY)


def _log_left(root: Path, reason: str) -> None:
    log.warning("cluster.left", storage=str(root), reason=reason, remedy=_REMEDY)
