"""On a file system that can, PostgreSQL 18 shares the blocks of a template with its clones."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from clonepool.core.copy_choice import Strategy
from clonepool.core.naming import Identity, Kind
from clonepool.postgres import databases
from clonepool.postgres.clones.copier import CloneSpec, Copiers
from clonepool.postgres.clones.copy_strategy import candidates
from clonepool.postgres.gateway import OWN_NAMES
from support import binaries
from support.outages import running_external_server
from support.servers import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clonepool.postgres.embedded.server import EmbeddedServer
    from clonepool.postgres.templates.recipe import Generation
    from support.servers import ServerTools

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
    pytest.mark.skipif(shutil.which("mkfs.xfs") is None, reason="there is no mkfs.xfs"),
    pytest.mark.skipif(18 not in binaries.available(), reason="no PostgreSQL 18 here"),
]

MIB = 1024 * 1024
ROWS = """\
CREATE TABLE much (id int PRIMARY KEY, text text);
INSERT INTO much SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 40000) AS n;
"""


@contextmanager
def mounted_xfs(directory: Path) -> Iterator[Path]:
    """Make an XFS in a file and mount it; both are gone at the end."""
    image, disk = directory / "image", directory / "disk"
    with image.open("wb") as file:
        file.truncate(1024 * MIB)
    disk.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    done = subprocess.run(
        ["mount", "-o", "loop", image, disk], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"an XFS cannot be mounted here: {done.stderr.strip()}")
    try:
        disk.chmod(0o711)
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def used_bytes(disk: Path) -> int:
    """Return what is in use once everything is written."""
    os.sync()
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    with open_directory() as directory, mounted_xfs(directory) as disk:
        (disk / "much.sql").write_text(ROWS)
        yield disk


@pytest.fixture(scope="module")
def server(disk: Path) -> Iterator[EmbeddedServer]:
    with running_external_server(disk, storage="disk") as postgres:
        yield postgres.server


async def make(tools: ServerTools, generation: Generation, strategy: Strategy) -> str:
    """Make a clone that way, read it, and have it written."""
    copiers = Copiers(
        tools.gateway, tools.capabilities, {"much": strategy}, time.monotonic, throwaway=True
    )
    serial = tools.serials.next()
    name = tools.namer.name(Identity(Kind.CLONE, "much", generation.short, serial))
    await copiers.of("much").make(
        CloneSpec(name, generation.database, generation.contents, {}, 60.0)
    )
    async with tools.gateway.session(name, OWN_NAMES) as session:
        assert await session.value("SELECT count(*) FROM much") == 40_000
        await session.execute("CHECKPOINT")
    return name


async def test_a_clone_by_reflinks_takes_hardly_any_room(tools: ServerTools, disk: Path) -> None:
    generation = await tools.build(["much.sql"], disk, "much")
    taken: dict[Strategy, int] = {}
    for strategy in candidates("auto", tools.capabilities, throwaway=True):
        await tools.gateway.ddl("CHECKPOINT")
        before = used_bytes(disk)
        name = await make(tools, generation, strategy)
        taken[strategy] = used_bytes(disk) - before
        await databases.drop(tools.gateway, name)
    assert generation.size_bytes > 40 * MIB
    assert taken[Strategy.FILE_COPY] > 0.9 * generation.size_bytes
    assert taken[Strategy.CLONE] < 0.1 * generation.size_bytes
