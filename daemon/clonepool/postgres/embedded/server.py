"""The embedded server as one thing: bring it up, say where it is, take it down."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
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
from clonepool.postgres.databases import INVALID_CATALOG_NAME
from clonepool.postgres.embedded import claims, cluster, postmaster, settings
from clonepool.postgres.embedded.account import choose_account, name_of
from clonepool.postgres.embedded.binaries import find_binaries
from clonepool.postgres.embedded.postmaster import UnusableClusterError
from clonepool.postgres.embedded.storage import (
    Storage,
    check_size,
    choose_storage,
    places_of,
    prepare,
)
from clonepool.postgres.endpoint import Endpoint
from clonepool.postgres.gateway import Gateway, identifier
from clonepool.postgres.roles import prepare_embedded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clonepool.config import EmbeddedSection
    from clonepool.postgres.embedded.cluster import Marker
    from clonepool.postgres.embedded.postmaster import Postmaster
    from clonepool.postgres.gateway import Session

log = structlog.get_logger()

MARKER = "cluster.json"
_PLACE_SECONDS = 5.0
_LOOK_SECONDS = 0.02


class EmbeddedServer:
    """A PostgreSQL server of the daemon's own.

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
        """The psql that fits the server."""
        return self._binaries.program("psql")

    @property
    def endpoint(self) -> Endpoint:
        """Where it is for the daemon, which proves by the Unix socket who it is."""
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
        """Where it is for whoever has a login; by TCP when a port was asked for."""
        if self._section.port:
            return msgspec.structs.replace(self.endpoint, host="127.0.0.1")
        return self.endpoint

    def alive(self) -> bool:
        """Say whether the server process runs."""
        return self._postmaster is not None and self._postmaster.alive()

    async def start(self) -> None:
        """Adopt the running server, start the one that lies there, or make one.

        Whatever a lease did to the one that lies there, a server that serves comes out of it.

        Raises:
            EmbeddedServerError: says what stands in the way, and not of the data; that is kept.
        """
        check_size(self.storage, self._max_clones, self._floor)
        await self._take_place()
        try:
            await self._start_in_place()
        except BaseException:
            self.let_go()
            raise

    async def _start_in_place(self) -> None:
        await self._ensure_cluster()
        configured = self._write_settings()
        running = postmaster.find_running(self.storage)
        if running is not None and configured:
            await running.stop()
        try:
            await self._adopt_or_start()
            await self._put_in_order()
        except UnusableClusterError as error:
            await self._replace_cluster(error)
        await anyio.to_thread.run_sync(cluster.remove_halves, self.storage)

    async def _take_place(self) -> None:
        """Make the directories, and say in the one in memory whose it is, for as long as we live.

        The lock in the state directory does not tell of a daemon under which that was deleted.

        Raises:
            AlreadyRunningError: such a daemon uses the place.
            EmbeddedServerError: the place cannot be used.
        """
        with anyio.move_on_after(_PLACE_SECONDS):
            while not self._has_place():
                await anyio.sleep(_LOOK_SECONDS)
            return
        raise AlreadyRunningError(
            f"another daemon uses {self.storage.root}, and its state directory was deleted under"
            " it and made again",
            remedy="stop that daemon, or name another --state",
        )

    def _has_place(self) -> bool:
        """Take it; False when another daemon has it, or is just removing what was left there."""
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

    def let_go(self) -> None:
        """Leave the place, and the server if it runs, to whoever comes next."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    async def _replace_cluster(self, why: UnusableClusterError) -> None:
        """Try with an empty cluster; if that is no better, it is not for the data.

        Raises:
            EmbeddedServerError: the first error; the data is where it was.
        """
        marker = self._marker
        await self._stop_any()
        aside = cluster.set_aside(self.storage)
        try:
            await self._make_cluster()
            self._write_settings()
            await self._start()
            await self._put_in_order()
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
        """Start the server again after it ended under a running daemon.

        Raises:
            ClusterLostError: its data is damaged. A new cluster would have another identity, and
                every clone and lease is gone: only a new start of the daemon can go on from there.
            EmbeddedServerError: it does not start; another try may succeed.
        """
        try:
            await self._adopt_or_start()
            await self._put_in_order()
        except EmbeddedServerError as error:
            if _is_damage(error):
                raise ClusterLostError(str(error), remedy="start the daemon again") from error
            raise

    async def stop(self) -> None:
        """Shut the server down; its data stays for the next start."""
        try:
            if self._postmaster is not None:
                await self._postmaster.stop()
                log.info("server.stopped", pid=self._postmaster.pid)
        finally:
            self.let_go()

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
            await self._leave_former(Path(marker.root))
        judgement = cluster.judge(self.storage, marker, self._binaries, cluster.boot_id())
        if judgement is cluster.Judgement.USABLE:
            self._marker = marker
            return
        if judgement is cluster.Judgement.REBOOTED:
            log.warning(
                "cluster.discarded",
                reason="the machine was booted since, and the data was written without fsync",
            )
        if judgement is cluster.Judgement.OUTDATED:
            log.warning(
                "cluster.discarded",
                reason="an earlier version made it, whose leases knew the daemon's own password",
            )
        await self._make_cluster()

    async def _leave_former(self, root: Path) -> None:
        """Remove the cluster that lies in memory when it is to be on disk now, or vice versa.

        Another root than these two is that of another state directory, of which ours is a copy.
        """
        if root in places_of(self._state):
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
        """Write postgresql.conf and pg_hba.conf, and say whether one of them changed."""
        text = settings.render(
            major=self._binaries.major,
            memory_bytes=settings.machine_memory_bytes(),
            max_connections=self._section.max_connections,
            socket=self.storage.socket,
            port=self._section.port,
            overrides=self._section.settings,
        )
        changed = [
            _write_if_other(self.storage.settings, text),
            _write_if_other(self.storage.access, cluster.access_rules(self._binaries.major)),
            _write_if_other(self.storage.identities, cluster.identities(name_of(os.geteuid()))),
        ]
        return any(changed)

    async def _probe(self) -> None:
        """Connect once; a database of ours that is not there yet, or not any more, will be."""
        async with self._any_session():
            pass

    async def _put_in_order(self) -> None:
        """See that the daemon's own role and database are what they should be.

        Raises:
            UnusableClusterError: the server does not let us.
        """
        changed = postmaster.forget_alter_system(self.storage)
        name = identifier(cluster.MAINTENANCE)
        try:
            async with self._any_session() as session:
                if changed:
                    await session.value("SELECT pg_reload_conf()")
                await prepare_embedded(session, cluster.SUPERUSER, self._binaries.major)
                if not await session.rows(
                    "SELECT FROM pg_database WHERE datname = $1", cluster.MAINTENANCE
                ):
                    await session.execute(f"CREATE DATABASE {name} TEMPLATE template0")
                await session.execute(
                    f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true CONNECTION LIMIT -1;"
                    f" ALTER DATABASE {name} RESET ALL"
                )
        except (StatementError, ServerUnavailableError) as error:
            raise UnusableClusterError(f"the server can't be set up: {error}") from error

    @asynccontextmanager
    async def _any_session(self) -> AsyncIterator[Session]:
        """Connect to whichever of the databases is there that every cluster begins with."""
        gateway = Gateway(self.endpoint, f"clonepool pid={os.getpid()}")
        first, *others = (cluster.MAINTENANCE, "postgres", "template1")
        for database in (first, *others):
            try:
                session = await gateway.connect(database)
            except StatementError as error:
                if error.sqlstate != INVALID_CATALOG_NAME or database == others[-1]:
                    raise
            else:
                break
        try:
            yield session
        finally:
            await session.close()

    @property
    def _marker_path(self) -> Path:
        return self._state / MARKER


def _write_if_other(path: Path, text: str) -> bool:
    """Write a file that the server's user reads, there being no secrets in it."""
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
    """Say whether the data itself keeps the server from starting.

    Only then is it thrown away; a port in use, a wrong setting or a full disk is for a person.
    """
    said = str(error)
    damaged = "PANIC" in said or "database files are incompatible" in said
    return damaged and "No space left" not in said
