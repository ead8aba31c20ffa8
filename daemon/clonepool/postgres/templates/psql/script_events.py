r"""What a script does that concerns files, its database, or how psql continues."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from clonepool.postgres.templates.psql.scripts import (
    SENDING,
    Kind,
    Piece,
    blanked,
    command_of,
    has_any,
    moved,
    pieces,
    sql_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_OF_FILES = ("copy", "pg_read_", "pg_ls_dir", "lo_import")
_WORDS = ("database", "standard_conforming", *_OF_FILES)
"""Words without which a statement causes no event."""
_SAYS = re.compile(r"\\[A-Za-z!]")
_MAY_BE_VARIABLE = re.compile(r":[A-Za-z_]")
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


class ScriptEvent(msgspec.Struct, frozen=True, array_like=True):
    r"""Something in a script that concerns files, its database, or how psql continues.

    Attributes:
        line: its number, from 1.
        what: a command of psql's with its backslash; `leaves` for a statement that creates or drops
            a database; `file` and `program` for what the server reads; `variable` for a reference
            to a variable.
        text: the command's arguments, the statement's first words, the file's name, or the
            variable's name, as they are written.
        statement: that the command sends, if that matters.
    """

    line: int
    what: str
    text: str
    statement: str = ""


def events_of(text: str) -> list[ScriptEvent]:
    """Return the events of a script, in order."""
    if not _may_have_events(text):  # a large file of rows, for example
        return []
    return list(_EventReader(text).events())


def makes_database(statement: str) -> str:
    """Return CREATE or DROP DATABASE if a query's text has it, in strings too; else nothing."""
    found = _MAKES_DATABASE.search(statement)
    return " ".join(found[1].split()) if found else ""


def _may_have_events(text: str) -> bool:
    if has_any(text, _WORDS) or _SAYS.search(text):
        return True
    before = (text[match.start() - 1 : match.start()] for match in _MAY_BE_VARIABLE.finditer(text))
    return any(character != ":" and not character.isalnum() for character in before)


class _EventReader:
    """Turns the pieces of one script into events."""

    def __init__(self, text: str) -> None:
        self._text = text.removeprefix("\ufeff")
        self._lines = [match.start() for match in re.finditer("\n", self._text)]

    def events(self) -> Iterator[ScriptEvent]:
        statement: list[Piece] = []
        began = 0
        for piece in pieces(self._text):
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
                    yield ScriptEvent(self._line(piece.start), "variable", name)
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

    def _command(self, piece: Piece, began: int, statement: list[Piece]) -> ScriptEvent:
        name, arguments = command_of(self._text, piece)
        sent = ""
        if name in ("gset", "gexec"):
            sent = blanked(
                self._text[began : piece.start],
                moved(statement, -began),
                {Kind.COMMENT, Kind.COMMAND},
            )
        if name in ("q", "quit", "exit"):
            arguments = "more" if self._last_word > piece.end else ""
        return ScriptEvent(self._line(piece.start), f"\\{name}", arguments, sent)

    def _statement(self, began: int, end: int, inside: list[Piece]) -> Iterator[ScriptEvent]:
        """Yield what a statement does to databases and with files of the server."""
        if not has_any(self._text[began:end], _WORDS):
            return
        bare = sql_of(self._text, began, end, inside)
        if found := _LEAVES.match(bare):
            yield ScriptEvent(
                self._line(began + found.start(1)), "leaves", " ".join(found[1].split())
            )
        yield from self._server_reads(self._text[began:end], bare, began)
        for piece in inside:
            if piece.kind is Kind.BODY:
                tag = self._text.index("$", piece.start + 1) + 1 - piece.start
                start, stop = piece.start + tag, max(piece.start + tag, piece.end - tag)
                body = self._text[start:stop]
                bare = sql_of(body, 0, len(body), list(pieces(body, plain=True)))
                yield from self._server_reads(body, bare, start)

    def _server_reads(self, text: str, bare: str, offset: int) -> Iterator[ScriptEvent]:
        for match in _SERVER_READS.finditer(bare) if has_any(bare, _OF_FILES) else ():
            line = self._line(offset + match.start())
            if match["program"]:
                yield ScriptEvent(line, "program", "COPY FROM PROGRAM")
                continue
            group = "file" if match["file"] else "argument"
            yield ScriptEvent(line, "file", text[match.start(group) : match.end(group)].strip())

    def _line(self, position: int) -> int:
        return bisect_right(self._lines, position - 1) + 1

    @cached_property
    def _last_word(self) -> int:
        """The position after the last text that is no comment."""
        return len(blanked(self._text, pieces(self._text), {Kind.COMMENT}).rstrip())
