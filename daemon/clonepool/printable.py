"""Texts of others made safe for a terminal.

Labels, names of clients, queries and the output of programs come from users of the daemon. The
reader's terminal would obey an escape sequence in them, a line break would forge a line, and marks
of direction would show a different text. Standard library only.
"""

from __future__ import annotations

import re
import unicodedata

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters, lone surrogates (which cannot be encoded), and separators."""
_LAST_OF_LATIN_1 = 0xFF
_SUSPECT = re.compile(r"[^ -~]")


def line(text: object) -> str:
    r"""Return a text as one line, with unprintable characters written as `\x1b` or `\u202e`."""
    return _SUSPECT.sub(_visible, str(text))


def block(text: object) -> str:
    """Return a text of several lines, each made printable; tabs stay."""
    return "\n".join("\t".join(map(line, written.split("\t"))) for written in str(text).split("\n"))


def _visible(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in _UNPRINTABLE:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code <= _LAST_OF_LATIN_1 else f"\\u{code:04x}"
