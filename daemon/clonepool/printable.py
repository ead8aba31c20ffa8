"""Texts of others made fit for a terminal: they are shown, and obeyed by nothing.

Labels, names of clients, queries and what programs said come from whoever may lease. An escape
sequence in them would be carried out by the reader's terminal, a line break would forge a line,
and marks of direction would show another text than is there. Standard library only.
"""

from __future__ import annotations

import re
import unicodedata

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, lone surrogates (which cannot be written at all), separators."""
_LAST_OF_LATIN_1 = 0xFF
_SUSPECT = re.compile(r"[^ -~]")


def line(text: object) -> str:
    r"""Return a text as one line, with what is not printable written out as `\x1b` or `\u202e`."""
    return _SUSPECT.sub(_visible, str(text))


def block(text: object) -> str:
    """Return a text that may have several lines, each made printable."""
    return "\n".join("\t".join(map(line, written.split("\t"))) for written in str(text).split("\n"))


def _visible(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in _UNPRINTABLE:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code <= _LAST_OF_LATIN_1 else f"\\u{code:04x}"
