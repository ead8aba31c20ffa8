"""Bytes to lines. Standard library only: the synchronous client uses it too."""

from __future__ import annotations

MAX_LINE_BYTES = 1024 * 1024


class LineTooLongError(Exception):
    """A line is longer than the limit: where the next one begins cannot be known."""


class LineReader:
    r"""Cut a stream into lines that end in `\n`, whatever pieces it arrives in.

    Args:
        limit: bytes that a line may have, not counting its end.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their ends.

        Raises:
            LineTooLongError: a line is too long. The lines before it in `data` are lost as well,
                and the stream cannot be read on.
        """
        end = data.find(b"\n")
        if end < 0:
            self._rest += data
            self._check(len(self._rest))
            return []
        if end == len(data) - 1 and not self._rest and end <= self._limit:
            return [data[:end]]  # what nearly every client sends: one line and no more
        *lines, rest = data.split(b"\n")
        if self._rest:
            lines[0] = bytes(self._rest) + lines[0]
        self._rest = bytearray(rest)
        self._check(max(len(rest), *(len(line) for line in lines)))
        return lines

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise LineTooLongError(f"a line of more than {self._limit} bytes")
