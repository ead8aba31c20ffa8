r"""Splits a script into pieces as psql does: comments, strings, rows of COPY, psql's own commands.

Only what the text alone tells is found here; `script_events` tells what the pieces do. The model is
psqlscan.l and psqlscanslash.l of PostgreSQL's sources.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Kind(Enum):
    """What a piece of a script is; between pieces there is plain SQL."""

    COMMENT = auto()
    STRING = auto()
    NAME = auto()
    """A name in double quotes."""
    BODY = auto()
    """A string in dollar quotes."""
    ROWS = auto()
    """The rows after COPY FROM STDIN, with the line that ends them."""
    COMMAND = auto()
    r"""A command of psql's, from its backslash to the end of its arguments."""
    END = auto()
    """The end of a statement."""
    VARIABLE = auto()
    """A reference to a variable of psql's, whose value is parsed in its place."""
    NOTHING = auto()
    """Something that only looks like one of these."""


class Piece(NamedTuple):
    """A part of a script, from `start` to before `end`."""

    kind: Kind
    start: int
    end: int


SENDING = frozenset(
    {"g", "gx", "gset", "gexec", "gdesc", "crosstabview", "watch", "parse", "sendpipeline"}
)
r"""Commands that send the statement before them."""
_WHOLE_LINE = frozenset({"copy", "!", "h", "help", "ef", "ev", "sf", "sv"})
_TO_PROGRAM = frozenset({"g", "gx", "o", "out", "w", "write"})
_NAMES = r"\w$\x80-\U0010ffff"
_START = re.compile(r"""'|"|\$|;|\\|:|--|/\*""")
"""How a piece may begin. `re` skips most of a script by the set of first characters."""
_STRING = re.compile(r"'(?:[^']|'')*(?:'|\Z)")
_BACKSLASHES = re.compile(r"'(?:[^'\\]|\\.|'')*(?:'|\Z)", re.DOTALL)
_ESCAPING = re.compile(rf"(?<![{_NAMES}])[eE]'")
_NAME = re.compile(r'"(?:[^"]|"")*(?:"|\Z)')
_BODY = re.compile(rf"(?<![{_NAMES}])\$(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?\$")
_COMMENT = re.compile(r"--[^\n]*")
_COMMAND = re.compile(r"\\[^\s\\]*")
_VARIABLE = re.compile(
    r""":(?:[\w\x80-\U0010ffff]+|'[\w\x80-\U0010ffff]+'|"[\w\x80-\U0010ffff]+")"""
)
_COMMAND_NAME = re.compile(r"[^\s\\]*")
_TO_PIPE = re.compile(r"\s*(?:\([^)]*\)\s*)?\|")
_NESTED = re.compile(r"/\*|\*/")
_ARGUMENT = re.compile(r"""'(?:[^'\\]|\\.|'')*(?:'|\Z)|`[^`]*(?:`|\Z)|"[^"]*(?:"|\Z)|[^\\'`"]+""")
_ROWS_END = re.compile(r"^\\\.[ \t\r]*$", re.MULTILINE)
_FROM_STDIN = re.compile(r"\s*COPY\b[^;]*\bFROM\s+STDIN\b", re.IGNORECASE)
_COPIES_IN = re.compile(r"\bFROM\s+STDIN\b", re.IGNORECASE)
_OLD_STRINGS = re.compile(
    r"\s*SET\s+(?:SESSION\s+|LOCAL\s+)?standard_conforming_strings\s*(?:=|\bTO\b)\s*'?(\w+)",
    re.IGNORECASE,
)
_OF_ROWS = ("copy", "standard_conforming")
"""Words without which a statement does not change how the script is parsed."""
_NO_LINE_END = re.compile(r"[^\n]")


def blank(text: str, *, keep_names: bool = False) -> str:
    """Return the script with comments, strings and the rows of COPY blanked out.

    The result has the same length and the same lines.

    Args:
        text: the script.
        keep_names: whether names in double quotes stay.
    """
    hidden = {Kind.COMMENT, Kind.STRING, Kind.BODY, Kind.ROWS}
    return blanked(text, pieces(text), hidden if keep_names else hidden | {Kind.NAME})


def pieces(text: str, *, plain: bool = False) -> Iterator[Piece]:
    r"""Yield the pieces of a script, in order.

    Args:
        text: the script.
        plain: whether it is SQL alone, such as the body of a function, which psql does not parse.
    """
    return _Scanner(text, plain=plain).run()


class _Scanner:
    """Splits one script into pieces."""

    def __init__(self, text: str, *, plain: bool) -> None:
        self._text = text
        self._plain = plain
        self._old_strings = False
        self._strings_due: tuple[int, bool] | None = None
        """From where on strings are parsed in another way, and how; psql asks once per line."""
        self._statement: list[Piece] = []
        self._began = 0
        self._due = 0
        """Number of COPY statements on the present line, whose rows follow it."""

    def run(self) -> Iterator[Piece]:
        text, position = self._text, 0
        while True:
            stop = self._rows_begin(position)
            match = _START.search(text, position, stop)
            if match is None:
                if not self._due:
                    return
                for piece in self._rows(stop):
                    yield piece
                    stop = piece.end
                position = self._began = stop
                self._statement = []
                continue
            piece = self._piece(match.start(), match[0], stop)
            position = piece.end
            if piece.kind is not Kind.NOTHING:
                self._note(piece)
                yield piece

    def _rows_begin(self, position: int) -> int:
        if not self._due:
            return len(self._text)
        line_end = self._text.find("\n", position)
        return len(self._text) if line_end < 0 else line_end + 1

    def _rows(self, position: int) -> Iterator[Piece]:
        """Yield the rows that come after a line with COPY."""
        for _ in range(self._due):
            end = _ROWS_END.search(self._text, position)
            stop = len(self._text) if end is None else end.end()
            yield Piece(Kind.ROWS, position, stop)
            position = min(stop + 1, len(self._text))
        self._due = 0

    def _piece(self, start: int, first: str, stop: int) -> Piece:
        """Return the piece that begins here; NOTHING if it only looks like one."""
        text = self._text
        match first:
            case ";":
                piece = Piece(Kind.END, start, start + 1)
            case "'":
                piece = self._string(start, stop)
            case '"':
                piece = _found(Kind.NAME, _NAME.match(text, start, stop), start)
            case "$":
                piece = self._body(start)
            case "--":
                piece = _found(Kind.COMMENT, _COMMENT.match(text, start), start)
            case "/*":
                piece = Piece(Kind.COMMENT, start, _comment_end(text, start + 2))
            case _ if self._plain:
                piece = Piece(Kind.NOTHING, start, start + 1)
            case _:
                piece = self._backslash(start) if first == "\\" else self._colon(start)
        return piece

    def _string(self, start: int, stop: int) -> Piece:
        if self._strings_due and start > self._strings_due[0]:
            self._old_strings, self._strings_due = self._strings_due[1], None
        begins = start - 1 if start and _ESCAPING.match(self._text, start - 1) else start
        escapes = self._old_strings or begins < start
        whole = (_BACKSLASHES if escapes else _STRING).match(self._text, start, stop)
        return Piece(Kind.STRING, begins, whole.end() if whole else stop)

    def _body(self, start: int) -> Piece:
        tag = _BODY.match(self._text, start)
        if tag is None:
            return Piece(Kind.NOTHING, start, start + 1)
        closing = self._text.find(tag[0], tag.end())
        end = len(self._text) if closing < 0 else closing + len(tag[0])
        return Piece(Kind.BODY, start, end)

    def _backslash(self, start: int) -> Piece:
        second = self._text[start + 1 : start + 2]
        if second in (";", ":"):  # an escape: psql passes the character on as SQL
            return Piece(Kind.END if second == ";" else Kind.NOTHING, start, start + 2)
        command = _COMMAND.match(self._text, start)
        end = command.end() if command else start + 1
        return Piece(Kind.COMMAND, start, _command_end(self._text, start, end))

    def _colon(self, start: int) -> Piece:
        if self._text.startswith("::", start):
            return Piece(Kind.NOTHING, start, start + 2)
        return _found(Kind.VARIABLE, _VARIABLE.match(self._text, start), start)

    def _note(self, piece: Piece) -> None:
        """Remember what decides how the rest of the script is parsed."""
        if self._plain:
            return
        name = command_of(self._text, piece)[0] if piece.kind is Kind.COMMAND else ""
        if name == "copy":
            self._due += _COPIES_IN.search(self._text, piece.start, piece.end) is not None
        if piece.kind is Kind.END or name in SENDING:
            self._ends(piece.start)
        elif name in ("r", "reset"):
            self._statement, self._began = [], piece.end
        else:
            self._statement.append(piece)
            return
        self._statement, self._began = [], piece.end

    def _ends(self, end: int) -> None:
        if not has_any(self._text[self._began : end], _OF_ROWS):
            return
        bare = sql_of(self._text, self._began, end, self._statement)
        self._due += _FROM_STDIN.match(bare) is not None
        if found := _OLD_STRINGS.match(bare):
            line_end = self._text.find("\n", end)
            old = found[1].lower() in ("off", "false", "no", "0")
            self._strings_due = (len(self._text) if line_end < 0 else line_end), old


def command_of(text: str, piece: Piece) -> tuple[str, str]:
    r"""Return a command's name without its backslash, and its arguments as they are written."""
    whole = text[piece.start + 1 : piece.end]
    name = _COMMAND_NAME.match(whole)
    end = name.end() if name else 0
    return whole[:end], whole[end:]


def sql_of(text: str, began: int, end: int, inside: Iterable[Piece]) -> str:
    """Return a statement with comments and quoted text blanked, except for the quotes."""
    part, parts, position = text[began:end], [], 0
    for piece in moved(inside, -began):
        start, stop = piece.start, piece.end
        if piece.kind is Kind.STRING:
            start += 1 + (part[start] in "eE")
            stop = max(start, stop - 1)
        elif piece.kind in (Kind.NAME, Kind.VARIABLE, Kind.END):
            continue
        parts += [part[position:start], _NO_LINE_END.sub(" ", part[start:stop])]
        position = stop
    return "".join([*parts, part[position:]])


def has_any(text: str, words: Iterable[str]) -> bool:
    """Say whether a text contains any of these words, which are in lower case."""
    lowered = text.lower()
    return any(word in lowered for word in words)


def _found(kind: Kind, match: re.Match[str] | None, start: int) -> Piece:
    return Piece(kind, start, match.end()) if match else Piece(Kind.NOTHING, start, start + 1)


def moved(found: Iterable[Piece], by: int) -> Iterator[Piece]:
    """Yield pieces with their positions moved."""
    return (Piece(piece.kind, piece.start + by, piece.end + by) for piece in found)


def blanked(text: str, found: Iterable[Piece], kinds: set[Kind]) -> str:
    """Return the text with pieces of these kinds blanked; ends of lines stay."""
    parts, position = [], 0
    for piece in found:
        if piece.kind in kinds:
            hidden = _NO_LINE_END.sub(" ", text[piece.start : piece.end])
            parts += [text[position : piece.start], hidden]
            position = piece.end
    return "".join([*parts, text[position:]])


def _comment_end(text: str, position: int) -> int:
    depth = 1
    for match in _NESTED.finditer(text, position):
        depth += 1 if match[0] == "/*" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _command_end(text: str, start: int, position: int) -> int:
    r"""Return where a command's arguments end: at the next backslash, or with the line."""
    name = text[start + 1 : position]
    line_end = text.find("\n", position)
    line_end = len(text) if line_end < 0 else line_end
    to_program = name in _TO_PROGRAM and _TO_PIPE.match(text, position, line_end)
    if name in _WHOLE_LINE or to_program:
        return line_end
    while argument := _ARGUMENT.match(text, position, line_end):
        position = argument.end()
    return position + 2 if text.startswith("\\\\", position) else position
