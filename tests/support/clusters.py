"""Clusters made by initdb once a version, and copied for each daemon and server after that.

initdb takes longer than the rest of a first start. A copy is what initdb makes, under an
identity of its own. Tests of how a cluster is made do not use this.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clonepool.errors import EmbeddedServerError
from clonepool.postgres.embedded import claims, cluster
from clonepool.postgres.embedded.account import choose_account
from clonepool.postgres.embedded.binaries import find_binaries
from clonepool.postgres.embedded.server import MARKER
from clonepool.postgres.embedded.storage import MIB, Storage, choose_storage, prepare
from support import binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clonepool.config import EmbeddedSection
    from clonepool.postgres.embedded.account import Account
    from clonepool.postgres.embedded.binaries import Binaries

PLACE = "CLONEPOOL_TEST_CLUSTERS"
"""Environment variable: the directory of what was made, which all workers of a run share."""
_SYSTEM_IDENTIFIER_IN_LOG = 24
"""Offset in the first page of a WAL segment; in pg_control it is the first field."""
_CASTAGNOLI = 0x82F63B78


@contextlib.contextmanager
def place_for_copies() -> Iterator[None]:
    """Make a directory for the clusters of a test run, shared by its workers."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="clonepool-test-clusters-", dir=memory) as place:
        os.environ[PLACE] = place
        try:
            yield
        finally:
            del os.environ[PLACE]


def lay_down(state: Path, section: EmbeddedSection, max_clones: int) -> None:
    """Put a cluster where the server of a state directory will look for its own.

    Where there is one, or this cannot be done, nothing is changed: the server makes its own, or
    says why it cannot.
    """
    ordinary = not section.binaries or Path(section.binaries) in binaries.available().values()
    if not ordinary or PLACE not in os.environ or (state / MARKER).exists():
        return
    with contextlib.suppress(EmbeddedServerError, OSError):
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        account = choose_account(section.user)
        programs = find_binaries(section.binaries, account, state)
        storage = choose_storage(
            section.storage, state, account, max_clones, section.min_free_mib * MIB
        )
        _lay_down(state, storage, programs, account)


def _lay_down(state: Path, storage: Storage, programs: Binaries, account: Account) -> None:
    if storage.root.exists():
        return
    prepare(storage, account)
    claim = claims.take(storage.root, claims.claim_of(state)) if storage.in_memory else None
    if storage.in_memory and claim is None:
        return
    try:
        subprocess.run(
            ["cp", "-a", "--reflink=auto", _made(programs, account), storage.data],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        _give_identity(storage.data)
        marker = cluster.Marker(cluster.boot_id(), str(storage.root), cluster.SUPERUSER)
        cluster.write_marker(state / MARKER, marker)
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(storage.data, ignore_errors=True)
    finally:
        if claim is not None:
            os.close(claim)


def _made(programs: Binaries, account: Account) -> Path:
    """Return the cluster that initdb made with these binaries; make it if there is none."""
    place = Path(os.environ[PLACE])
    place.chmod(0o711)
    stamp = hashlib.blake2s(bytes(programs.directory), digest_size=4).hexdigest()
    name = f"{programs.major}-{account.name}-{stamp}"
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = place / name
        if not made.exists():
            scratch = Storage(place / f"{name}.new", in_memory=False)
            shutil.rmtree(scratch.root, ignore_errors=True)
            prepare(scratch, account)
            cluster.make(scratch, programs, account, "")
            scratch.data.rename(made)
    return made


def _give_identity(data: Path) -> None:
    """Give a copy a system identifier of its own, in pg_control and in its log."""
    identifier = secrets.token_bytes(8)
    control = data / "global" / "pg_control"
    content = bytearray(control.read_bytes())
    end = _end_of_control(content)
    content[:8] = identifier
    content[end : end + 4] = _crc32c(content[:end]).to_bytes(4, "little")
    _overwrite(control, content)
    for segment in (data / "pg_wal").glob("0*"):
        with segment.open("r+b") as file:
            file.seek(_SYSTEM_IDENTIFIER_IN_LOG)
            file.write(identifier)


def _end_of_control(content: bytearray) -> int:
    """Return the offset of the checksum of pg_control, right after the data it covers."""
    crc = 0xFFFFFFFF
    for position in range(0, 512, 4):
        if position >= 100 and content[position : position + 4] == (crc ^ 0xFFFFFFFF).to_bytes(
            4, "little"
        ):
            return position
        for byte in content[position : position + 4]:
            crc = _step(crc, byte)
    raise ValueError("pg_control has no checksum where one is looked for")


def _crc32c(content: bytearray) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _step(crc, byte)
    return crc ^ 0xFFFFFFFF


def _step(crc: int, byte: int) -> int:
    crc ^= byte
    for _ in range(8):
        crc = (crc >> 1) ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc


def _overwrite(path: Path, content: bytearray) -> None:
    with path.open("r+b") as file:
        file.write(content)
