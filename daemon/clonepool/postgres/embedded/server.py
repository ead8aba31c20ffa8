"""The embedded server as a whole: bringing it up, telling where it is, taking it down."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec
import structlog

from clonepool.errors import (
    AlreadyRunningError,
    ClusterLostError,
    EmbeddedServerError,
    ServerUnavailableError,
    StatementError,
)
from clonepool.postgres.embedded import claims, cluster, own_objects, postmaster, settings
from clonepool.postgres.embedded.account import choose_account, name_of
from clonepool.postgres.embedded.binaries import find_binaries
from clonepool.postgres.embedded.postmaster import UnusableClusterError
from clonepool.postgres.embedded.storage import (
    Storage,
    check_size,
    choose_storage,
    prepare,
    roots_of,
)
from clonepool.postgres.endpoint import Endpoint

if TYPE_CHECKING:
    from clonepool.config import EmbeddedSection
    from clonepool.postgres.embedded.cluster import Marker
    from clonepool.postgres.embedded.postmaster import Postmaster

log = structlog.get_logger()

MARKER = "cluster.json"
_CLAIM_SECONDS = 5.0
"""Time that another process has to release the storage root."""
_CLAIM_PAUSE_SECONDS = 0.02
"""Seconds between two tries to claim the storage root."""


class EmbeddedServer:
    """A PostgreSQL server that the daemon runs itself.

    Args:
        section: the configuration's [embedded].
        state: directory for what outlives the daemon.
        max_clones: how many clones its storage should hold.
    """

    def __init__(self, section: EmbeddedSection, state: Path, max_clones: int) -> None:
        self._section = section
        self._state = state
        self._account = choose_account(section.user)
        self._binaries = find_binaries(section.binaries, self._account, state)
        self._max_clones = max_clones
        self._floor = section.min_free_mib * settings.MIB
        self.storage = choose_storage(
            section.storage, state, self._account, max_clones, self._floor
        )
        self._marker: Marker | None = None
        self._postmaster: Postmaster | None = None
        self._claim: int | None = None

    @property
    def psql(self) -> Path:
        """The psql of the server's version."""
        return self._binaries.program("psql")

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint for the daemon, which the Unix socket authenticates."""
        if self._marker is None:
            raise EmbeddedServerError("the server was not started")
        return Endpoint(
            str(self.storage.socket),
            self._section.port or settings.DEFAULT_PORT,
            cluster.SUPERUSER,
            "",
            cluster.MAINTENANCE,
        )

    @property
    def clients(self) -> Endpoint:
        """The endpoint for clients; by TCP if a port is configured."""
        if self._section.port:
            return msgspec.structs.replace(self.endpoint, host="127.0.0.1")
        return self.endpoint

    def alive(self) -> bool:
        """Say whether the server process runs."""
        return self._postmaster is not None and self._postmaster.alive()

    async def start(self) -> None:
        """Adopt the running server, start it on the existing cluster, or create a cluster.

        If a lease has made the existing cluster unusable, it is replaced by an empty one.

        Raises:
            EmbeddedServerError: the server cannot be started for a reason other than its data,
                which is kept.
        """
        check_size(self.storage, self._max_clones, self._floor)
        await self._claim_root()
        try:
            await self._start_claimed()
        except BaseException:
            self.release()
            raise

    async def _start_claimed(self) -> None:
        await self._ensure_cluster()
        configured = self._write_settings()
        running = postmaster.find_running(self.storage)
        if running is not None and configured:
            await running.stop()
        try:
            await self._adopt_or_start()
            await self._reset_own_objects()
        except UnusableClusterError as error:
            await self._replace_cluster(error)
        await anyio.to_thread.run_sync(cluster.remove_scratch, self.storage)

    async def _claim_root(self) -> None:
        """Create the directories and, in memory, claim the storage root until `release`.

        The lock in the state directory does not suffice: it may have been deleted while another
        daemon was running, and created again.

        Raises:
            AlreadyRunningError: another daemon uses the root.
            EmbeddedServerError: the root cannot be used.
        """
        with anyio.move_on_after(_CLAIM_SECONDS):
            while not self._try_to_claim():
                await anyio.sleep(_CLAIM_PAUSE_SECONDS)
            return
        raise AlreadyRunningError(
            f"another daemon uses {self.storage.root}, and its state directory was deleted while it"
            " ran, and created again",
            remedy="stop that daemon, or choose another --state",
        )

    def _try_to_claim(self) -> bool:
        """Claim the root; False if another process has claimed it or is removing what was there."""
        try:
            prepare(self.storage, self._account)
            if self.storage.in_memory and self._claim is None:
                claim = claims.claim_of(self._state)
                self._claim = claims.take(self.storage.root, claim)
                return self._claim is not None
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self.storage.in_memory:
                return False
            raise EmbeddedServerError(f"{self.storage.root} cannot be used: {error}") from error
        return True

    def release(self) -> None:
        """Release the storage root; the server, if it runs, is left to the next daemon."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    async def _replace_cluster(self, why: UnusableClusterError) -> None:
        """Start an empty cluster; if that fails too, the reason is not the data, which is put back.

        Raises:
            EmbeddedServerError: the first error.
        """
        marker = self._marker
        await self._stop_any()
        aside = cluster.set_aside(self.storage)
        try:
            await self._make_cluster()
            self._write_settings()
            await self._start()
            await self._reset_own_objects()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._stop_any()
                cluster.put_back(self.storage, aside)
                if marker is not None:
                    cluster.write_marker(self._marker_path, marker)
            if isinstance(error, EmbeddedServerError):
                raise why from error
            raise
        log.warning("cluster.discarded", reason=str(why))
        await anyio.to_thread.run_sync(partial(shutil.rmtree, aside, ignore_errors=True))

    async def _stop_any(self) -> None:
        running = postmaster.find_running(self.storage)
        if running is not None:
            await running.stop()
        self._postmaster = None

    async def restart(self) -> None:
        """Start the server again after it ended while the daemon was running.

        Raises:
            ClusterLostError: its data is damaged. All clones and leases are lost, and a new cluster
                has another system identifier, so the daemon must be started again.
            EmbeddedServerError: it does not start; another try may succeed.
        """
        try:
            await self._adopt_or_start()
            await self._reset_own_objects()
        except EmbeddedServerError as error:
            if _is_damage(error):
                raise ClusterLostError(str(error), remedy="start the daemon again") from error
            raise

    async def stop(self) -> None:
        """Stop the server; its data stays for the next start."""
        try:
            if self._postmaster is not None:
                await self._postmaster.stop()
                log.info("server.stopped", pid=self._postmaster.pid)
        finally:
            self.release()

    async def _adopt_or_start(self) -> None:
        running = postmaster.find_running(self.storage)
        if running is not None and await postmaster.await_ready(running, self._probe):
            log.info("server.adopted", pid=running.pid)
            self._postmaster = running
            return
        await self._start()

    async def _start(self) -> None:
        self._postmaster = await postmaster.start(
            self.storage, self._binaries, self._account, self._probe
        )
        log.info(
            "server.started",
            pid=self._postmaster.pid,
            version=self._binaries.major,
            storage=str(self.storage.root),
            in_memory=self.storage.in_memory,
            user=self._account.name,
        )

    async def _ensure_cluster(self) -> None:
        marker = cluster.read_marker(self._marker_path)
        if marker is not None and marker.root != str(self.storage.root):
            await self._remove_former(Path(marker.root))
        checked = cluster.check_cluster(self.storage, marker, self._binaries, cluster.boot_id())
        if checked is cluster.ClusterCheck.USABLE:
            self._marker = marker
            return
        if checked is cluster.ClusterCheck.REBOOTED:
            log.warning(
                "cluster.discarded",
                reason="the machine was booted since, and the data was written without fsync",
            )
        if checked is cluster.ClusterCheck.OUTDATED:
            log.warning(
                "cluster.discarded",
                reason="an earlier version made it, whose leases knew the daemon's own password",
            )
        await self._make_cluster()

    async def _remove_former(self, root: Path) -> None:
        """Remove the cluster in memory if it is configured to be on disk now, or vice versa.

        A root that is neither belongs to another state directory, of which this one is a copy.
        """
        if root in roots_of(self._state):
            log.warning("cluster.discarded", reason=f"embedded.storage left {root}")
            await discard(self._state)

    async def _make_cluster(self) -> None:
        await self._stop_any()
        self._marker_path.unlink(missing_ok=True)
        began = anyio.current_time()
        self._marker = await anyio.to_thread.run_sync(
            cluster.make, self.storage, self._binaries, self._account, cluster.boot_id()
        )
        cluster.write_marker(self._marker_path, self._marker)
        log.info("cluster.created", duration_seconds=round(anyio.current_time() - began, 3))

    def _write_settings(self) -> bool:
        """Write the configuration files, and say whether one of them changed."""
        text = settings.render(
            major=self._binaries.major,
            memory_bytes=settings.machine_memory_bytes(),
            max_connections=self._section.max_connections,
            socket=self.storage.socket,
            port=self._section.port,
            overrides=self._section.settings,
        )
        changed = [
            _write_if_different(self.storage.settings, text),
            _write_if_different(self.storage.access, cluster.access_rules(self._binaries.major)),
            _write_if_different(self.storage.identities, cluster.identities(name_of(os.geteuid()))),
        ]
        return any(changed)

    async def _probe(self) -> None:
        """Connect once; the daemon's own database may not exist yet, or not any more."""
        async with own_objects.any_session(self.endpoint):
            pass

    async def _reset_own_objects(self) -> None:
        """Create or reset the daemon's own role and database.

        Raises:
            UnusableClusterError: the server does not allow it.
        """
        reload = postmaster.forget_alter_system(self.storage)
        try:
            await own_objects.reset(self.endpoint, self._binaries.major, reload=reload)
        except (StatementError, ServerUnavailableError) as error:
            raise UnusableClusterError(f"the server cannot be set up: {error}") from error

    @property
    def _marker_path(self) -> Path:
        return self._state / MARKER


def _write_if_different(path: Path, text: str) -> bool:
    """Write a file without secrets, which the server's user may read; say whether it changed."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return True


async def discard(state: Path) -> None:
    """Stop the server that belongs to a state directory, if it runs, and delete its data."""
    marker = cluster.read_marker(state / MARKER)
    if marker is None:
        return
    storage = Storage(Path(marker.root), in_memory=False)
    running = postmaster.find_running(storage)
    if running is not None:
        await running.stop()
    shutil.rmtree(storage.root, ignore_errors=True)
    (state / MARKER).unlink(missing_ok=True)


def _is_damage(error: EmbeddedServerError) -> bool:
    """Say whether the server does not start because of its data.

    Otherwise the data is kept, and a user must act: a port is in use, a setting is wrong, or the
    disk is full.
    """
    message = str(error)
    damaged = "PANIC" in message or "database files are incompatible" in message
    return damaged and "No space left" not in message
