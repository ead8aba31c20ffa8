r"""A script taken apart as psql does it: comments, strings, rows of COPY, and psql's own commands.

Only what can be told from the text alone; what the commands come to is found in `reading.py`. The
model is psqlscan.l and psqlscanslash.l of PostgreSQL's sources.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Kind(Enum):
    """What a piece of a script is; between pieces there is SQL of no interest."""

    COMMENT = auto()
    STRING = auto()
    NAME = auto()
    """In double quotes."""
    BODY = auto()
    """In dollar quotes."""
    ROWS = auto()
    """Of COPY FROM STDIN, with the line that ends them."""
    COMMAND = auto()
    r"""One of psql's, from its backslash to the end of its arguments."""
    END = auto()
    """Of a statement."""
    VARIABLE = auto()
    """One of psql's, whose value is read as if it stood there."""


class Piece(NamedTuple):
    """A part of a script."""

    kind: Kind
    start: int
    end: int


class Said(msgspec.Struct, frozen=True, array_like=True):
    r"""What a script says that concerns files, its database, or how psql goes on.

    Attributes:
        line: from 1.
        what: a command of psql's with its backslash; `leaves` for a statement that makes or drops a
            database; `file` and `program` for what the server reads; `variable` for SQL that stands
            in one.
        text: the command's arguments as they stand there; the statement's words; the file's name as
            it stands there; the variable's name.
        statement: which the command sends, where that matters.
    """

    line: int
    what: str
    text: str
    statement: str = ""


SENDING = frozenset(
    {"g", "gx", "gset", "gexec", "gdesc", "crosstabview", "watch", "parse", "sendpipeline"}
)
r"""Commands that end a statement."""
_WHOLE_LINE = frozenset({"copy", "!", "h", "help", "ef", "ev", "sf", "sv"})
_TO_PROGRAM = frozenset({"g", "gx", "o", "out", "w", "write"})
_NAMES = r"\w$\x80-\U0010ffff"
_TOKEN = re.compile(
    rf"""(?P<comment>--[^\n]*|/\*)
      | (?P<string>(?<![{_NAMES}])[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)
        | '(?:[^']|'')*(?:'|\Z))
      | (?P<name>"(?:[^"]|"")*(?:"|\Z))
      | (?P<body>(?<![{_NAMES}])\$(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?\$)
      | (?P<end>\\?;)
      | (?P<command>\\(?!:)[^\s\\]*)
      | (?P<variable>(?<!:):(?:[\w\x80-\U0010ffff]+|'[\w\x80-\U0010ffff]+'|"[\w\x80-\U0010ffff]+"))
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMAND_NAME = re.compile(r"[^\s\\]*")
_BACKSLASHES = re.compile(r"'(?:[^'\\]|\\.|'')*(?:'|\Z)", re.DOTALL)
_NESTED = re.compile(r"/\*|\*/")
_ARGUMENT = re.compile(r"""'(?:[^'\\]|\\.|'')*(?:'|\Z)|`[^`]*(?:`|\Z)|"[^"]*(?:"|\Z)|[^\\'`"]+""")
_ROWS_END = re.compile(r"^\\\.[ \t\r]*$", re.MULTILINE)
_FROM_STDIN = re.compile(r"\s*COPY\b[^;]*\bFROM\s+STDIN\b", re.IGNORECASE)
_COPIES_IN = re.compile(r"\bFROM\s+STDIN\b", re.IGNORECASE)
_OLD_STRINGS = re.compile(
    r"\s*SET\s+(?:SESSION\s+|LOCAL\s+)?standard_conforming_strings\s*(?:=|\bTO\b)\s*'?(\w+)",
    re.IGNORECASE,
)
_OF_INTEREST = re.compile(
    r"\bDATABASE\b|\bCOPY\b|pg_read_|pg_ls_dir|\blo_import\b|standard_conforming", re.IGNORECASE
)
_WORTH_IT = re.compile(rf"\\[A-Za-z!]|(?<![:\w]):[A-Za-z_]|{_OF_INTEREST.pattern}", re.IGNORECASE)
_LEAVES = re.compile(r"\s*((?:CREATE|DROP)\s+DATABASE)\b", re.IGNORECASE)
_MAKES_DATABASE = re.compile(r"\b((?:CREATE|DROP)\s+DATABASE)\b", re.IGNORECASE)
_LITERAL = r"""[eE]?'(?:[^'])*'|:'[\w\x80-\U0010ffff]+'|:[\w\x80-\U0010ffff]+"""
_SERVER_READS = re.compile(
    rf"""\bCOPY\s+(?:BINARY\s+)?(?:"[^"]*"|[^\s();,'"])+\s*(?:\([^()]*\)\s*)?FROM\s+
           (?:(?P<program>PROGRAM)\b|(?P<file>{_LITERAL}))
      | \b(?:pg_read_file|pg_read_binary_file|pg_ls_dir|lo_import)\s*\(\s*
           (?P<argument>{_LITERAL}|[^,)]*)""",
    re.IGNORECASE | re.VERBOSE,
)
_NO_LINE_END = re.compile(r"[^\n]")


def blank(text: str, *, keep_names: bool = False) -> str:
    """Return the script with comments, strings and the rows of COPY blanked out.

    It is as long as before, and has its lines where they were.

    Args:
        text: the script.
        keep_names: leave names in double quotes as they are.
    """
    hidden = {Kind.COMMENT, Kind.STRING, Kind.BODY, Kind.ROWS}
    return _without(text, pieces(text), hidden if keep_names else hidden | {Kind.NAME})


def listen(text: str) -> list[Said]:
    """Return what a script says, in order."""
    if _WORTH_IT.search(text) is None:  # as in a large file of rows
        return []
    return list(_Listener(text).said())


def pieces(text: str, *, plain: bool = False) -> Iterator[Piece]:
    r"""Yield what a script consists of, in order.

    Args:
        text: the script.
        plain: it is SQL alone, as in the body of a function: psql does not see it.
    """
    return _Scanner(text, plain=plain).run()


class _Scanner:
    """Goes through one script."""

    def __init__(self, text: str, *, plain: bool) -> None:
        self._text = text
        self._plain = plain
        self._old_strings = False
        self._strings_due: tuple[int, bool] | None = None
        """From where on strings are read otherwise, and how: psql asks once a line."""
        self._statement: list[Piece] = []
        self._began = 0
        self._due = 0
        """COPY statements of the present line whose rows are still to come."""

    def run(self) -> Iterator[Piece]:
        text, position = self._text, 0
        while True:
            stop = self._rows_begin(position)
            match = _TOKEN.search(text, position, stop)
            if match is None:
                if not self._due:
                    return
                for piece in self._rows(stop):
                    yield piece
                    stop = piece.end
                position = self._began = stop
                self._statement = []
                continue
            piece = self._piece(match)
            position = piece.end
            if self._plain and piece.kind in (Kind.COMMAND, Kind.VARIABLE):
                position = match.start() + 1
                continue
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

    def _piece(self, match: re.Match[str]) -> Piece:
        text, start, end = self._text, match.start(), match.end()
        kind = Kind[str(match.lastgroup).upper()]
        if self._strings_due and start > self._strings_due[0]:
            self._old_strings, self._strings_due = self._strings_due[1], None
        if kind is Kind.COMMENT and match[0] == "/*":
            end = _comment_end(text, end)
        elif kind is Kind.STRING and self._old_strings and match[0][0] == "'":
            whole = _BACKSLASHES.match(text, start)
            end = whole.end() if whole else end
        elif kind is Kind.BODY:
            closing = text.find(match[0], end)
            end = len(text) if closing < 0 else closing + len(match[0])
        elif kind is Kind.COMMAND:
            end = _command_end(text, start, end)
        return Piece(kind, start, end)

    def _note(self, piece: Piece) -> None:
        """Remember what decides how the script goes on."""
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
        if _OF_INTEREST.search(self._text, self._began, end) is None:
            return
        bare = sql_of(self._text, self._began, end, self._statement)
        self._due += _FROM_STDIN.match(bare) is not None
        if found := _OLD_STRINGS.match(bare):
            line_end = self._text.find("\n", end)
            old = found[1].lower() in ("off", "false", "no", "0")
            self._strings_due = (len(self._text) if line_end < 0 else line_end), old


class _Listener:
    """Makes of the pieces of one script what it says."""

    def __init__(self, text: str) -> None:
        self._text = text.removeprefix("\ufeff")
        self._pieces = list(pieces(self._text))
        self._lines = [match.start() for match in re.finditer("\n", self._text)]
        self._last = self._last_word()

    def said(self) -> Iterator[Said]:
        statement: list[Piece] = []
        began = 0
        for piece in self._pieces:
            if piece.kind is Kind.COMMAND:
                name, _ = command_of(self._text, piece)
                if name in SENDING:
                    yield from self._statement(began, piece.start, statement)
                yield self._command(piece, began, statement)
                if name not in {*SENDING, "r", "reset"}:
                    statement.append(piece)
                    continue
            elif piece.kind is Kind.VARIABLE:
                statement.append(piece)
                name = self._text[piece.start + 1 : piece.end]
                if name[0] not in "'\"":
                    yield Said(self._line(piece.start), "variable", name)
                continue
            elif piece.kind is Kind.ROWS:
                pass
            elif piece.kind is not Kind.END:
                statement.append(piece)
                continue
            else:
                yield from self._statement(began, piece.start, statement)
            statement, began = [], piece.end
        yield from self._statement(began, len(self._text), statement)

    def _command(self, piece: Piece, began: int, statement: list[Piece]) -> Said:
        name, arguments = command_of(self._text, piece)
        sent = ""
        if name in ("gset", "gexec"):
            sent = _without(
                self._text[began : piece.start],
                _moved(statement, -began),
                {Kind.COMMENT, Kind.COMMAND},
            )
        if name in ("q", "quit", "exit"):
            arguments = "more" if self._last > piece.end else ""
        return Said(self._line(piece.start), f"\\{name}", arguments, sent)

    def _statement(self, began: int, end: int, inside: list[Piece]) -> Iterator[Said]:
        """Yield what a statement does with databases and the server's files."""
        if _OF_INTEREST.search(self._text, began, end) is None:
            return
        bare = sql_of(self._text, began, end, inside)
        if found := _LEAVES.match(bare):
            yield Said(self._line(began + found.start(1)), "leaves", " ".join(found[1].split()))
        yield from self._server_reads(self._text[began:end], bare, began)
        for piece in inside:
            if piece.kind is Kind.BODY:
                tag = self._text.index("$", piece.start + 1) + 1 - piece.start
                start, stop = piece.start + tag, max(piece.start + tag, piece.end - tag)
                body = self._text[start:stop]
                bare = sql_of(body, 0, len(body), list(pieces(body, plain=True)))
                yield from self._server_reads(body, bare, start)

    def _server_reads(self, text: str, bare: str, offset: int) -> Iterator[Said]:
        for match in _SERVER_READS.finditer(bare):
            line = self._line(offset + match.start())
            if match["program"]:
                yield Said(line, "program", "COPY FROM PROGRAM")
                continue
            group = "file" if match["file"] else "argument"
            yield Said(line, "file", text[match.start(group) : match.end(group)].strip())

    def _line(self, position: int) -> int:
        return bisect_right(self._lines, position - 1) + 1

    def _last_word(self) -> int:
        """Return the end of the last that is no comment."""
        end = len(self._text)
        for piece in reversed(self._pieces):
            if self._text[piece.end : end].strip() or piece.kind is not Kind.COMMENT:
                break
            end = piece.start
        return len(self._text[:end].rstrip())


def command_of(text: str, piece: Piece) -> tuple[str, str]:
    r"""Return a command's name without its backslash, and its arguments as they stand there."""
    whole = text[piece.start + 1 : piece.end]
    name = _COMMAND_NAME.match(whole)
    end = name.end() if name else 0
    return whole[:end], whole[end:]


def sql_of(text: str, began: int, end: int, inside: Iterable[Piece]) -> str:
    """Return a statement with what is quoted blanked, but for the quotes, and comments gone."""
    part, parts, position = text[began:end], [], 0
    for piece in _moved(inside, -began):
        start, stop = piece.start, piece.end
        if piece.kind is Kind.STRING:
            start += 1 + (part[start] in "eE")
            stop = max(start, stop - 1)
        elif piece.kind in (Kind.NAME, Kind.VARIABLE, Kind.END):
            continue
        parts += [part[position:start], _NO_LINE_END.sub(" ", part[start:stop])]
        position = stop
    return "".join([*parts, part[position:]])


def makes_database(statement: str) -> str:
    """Return CREATE or DROP DATABASE where a query's text has it, strings included."""
    found = _MAKES_DATABASE.search(statement)
    return " ".join(found[1].split()) if found else ""


def _moved(found: Iterable[Piece], by: int) -> Iterator[Piece]:
    return (Piece(piece.kind, piece.start + by, piece.end + by) for piece in found)


def _without(text: str, found: Iterable[Piece], kinds: set[Kind]) -> str:
    """Return the text with pieces of these kinds blanked, ends of lines kept."""
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
    r"""Return where a command's arguments end: at another backslash, or with the line."""
    name = text[start + 1 : position]
    line_end = text.find("\n", position)
    line_end = len(text) if line_end < 0 else line_end
    rest = text[position:line_end].lstrip()
    if name in _WHOLE_LINE or (name in _TO_PROGRAM and re.match(r"(?:\([^)]*\)\s*)?\|", rest)):
        return line_end
    while argument := _ARGUMENT.match(text, position, line_end):
        position = argument.end()
    return position + 2 if text.startswith("\\\\", position) else position
