"""Writes what happens to the fleet into a file, one line of JSON an event; see `core.recording`.

A file that cannot be written to ends the recording and nothing else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog

from clonepool.core import recording
from clonepool.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clonepool.core.decisions import Decision
    from clonepool.core.events import Event
    from clonepool.core.naming import Serials

log = structlog.get_logger()

RECORDING_FAILED = "recording.failed"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Recorder:
    """A file that a run of the fleet is added to; each line is written as it comes.

    Args:
        path: of the file, which is made if missing, readable only by its owner.
        beginning: how the fleet began; nothing has happened to it yet.
        serials: from which the fleet takes numbers for clones.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, path: Path, beginning: recording.Beginning, serials: Serials) -> None:
        self._path = path
        self._serials = serials
        try:
            self._file: int | None = os.open(path, _FLAGS, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot record to {path}: {error.strerror}", remedy="name another file"
            ) from error
        self._write(self._end_of_line() + recording.encode(beginning))

    def record(self, now: float, event: Event, decisions: Sequence[Decision]) -> None:
        """Write what happened and what was decided; to be called before that is carried out.

        Args:
            now: monotonic seconds, as the fleet was told.
            event: that the fleet handled.
            decisions: that it returned.
        """
        if self._file is None:
            return
        try:
            line = recording.encode(recording.recorded_event(now, event, decisions, self._serials))
        except Exception as error:  # noqa: BLE001 - what was decided must be carried out all the same
            log.warning(RECORDING_FAILED, path=str(self._path), error=repr(error))
            self.close()
            return
        self._write(line)

    def close(self) -> None:
        """Write nothing more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _end_of_line(self) -> bytes:
        """Return what ends a line that an earlier daemon has left unfinished."""
        if self._file is None:
            return b""
        size = os.fstat(self._file).st_size
        return b"\n" if size and os.pread(self._file, 1, size - 1) != b"\n" else b""

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        try:
            written = os.write(self._file, line)
        except OSError as error:
            log.warning(RECORDING_FAILED, path=str(self._path), error=error.strerror)
            self.close()
            return
        if written < len(line):
            log.warning(RECORDING_FAILED, path=str(self._path), error="the file is full")
            self.close()
