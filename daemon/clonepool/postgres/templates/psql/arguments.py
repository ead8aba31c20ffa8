r"""The arguments of psql's commands, parsed as psql does (psqlscanslash.l)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_PART = re.compile(
    r"""(?P<space>\s+)
      | '(?P<quoted>(?:[^'\\]|\\.|'')*)(?:'|\Z)
      | (?P<program>`[^`]*(?:`|\Z))
      | (?P<name>"[^"]*(?:"|\Z))
      | :(?P<variable>[\w\x80-\U0010ffff]+)
      | :'(?P<literal>[\w\x80-\U0010ffff]+)'
      | :"(?P<identifier>[\w\x80-\U0010ffff]+)"
      | :\{\?(?P<asked>[\w\x80-\U0010ffff]+)\}
      | (?P<end>\\.*)
      | (?P<plain>.)
    """,
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"''|\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)
_CONTROLS = {"n": "\n", "t": "\t", "b": "\b", "r": "\r", "f": "\f"}
_COPY = re.compile(
    r"""\s*(?:binary\s+)?(?:"(?:[^"]|"")*"|[^\s"(),])+\s*(?:\((?:[^")]|"[^"]*")*\)\s*)?
        from\s+(?P<program>program\b)?\s*(?P<source>'(?:[^']|'')*'|[^\s;]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_ALL = re.compile(
    r"(?:\b(?:SELECT|ALL|DISTINCT|RETURNING)|[,.])\s*\*|\bDISTINCT\s+ON\b", re.IGNORECASE
)
_COPY_TO = re.compile(r".*\bto\s+(?P<source>'(?:[^']|'')*'|[^\s;]+)", re.IGNORECASE)
_LITERAL = re.compile(r"[eE]?'((?:[^']|'')*)'\Z", re.DOTALL)


class Argument(NamedTuple):
    """One argument of a command.

    Attributes:
        value: None if it cannot be known in advance.
        program: whether the output of a program is part of it.
    """

    value: str | None
    program: bool = False


class Variables:
    """Values of psql's variables, as far as they can be known in advance.

    Args:
        known: values by name; None for a variable that is set to an unknown value.
    """

    def __init__(self, known: Mapping[str, str | None]) -> None:
        self._known = dict(known)
        self._others = False
        """Whether other variables may be set, of which nothing is known."""

    @property
    def state(self) -> tuple[object, ...]:
        """The state of all variables, for comparison."""
        return (self._others, *sorted(self._known.items(), key=lambda each: each[0]))

    def value(self, name: str) -> str | None:
        """Return a variable's value: the reference itself if it is not set, None if unknown."""
        return self._known[name] if self.is_set(name) else None if self._maybe(name) else f":{name}"

    def is_set(self, name: str) -> bool | None:
        """Say whether a variable is set; None if that is not known."""
        return True if name in self._known else None if self._maybe(name) else False

    def set(self, name: str, value: str | None, *, surely: bool = True) -> None:
        """Set a variable; if not `surely`, it may keep its value."""
        same = surely or self._known.get(name) == value
        self._known[name] = value if same else None

    def unset(self, name: str, *, surely: bool = True) -> None:
        """Unset a variable; if not `surely`, it may stay set."""
        if surely:
            self._known.pop(name, None)
        elif name in self._known:
            self._known[name] = None

    def set_by_query(self, prefix: str, statement: str) -> None:
        r"""Forget the values of variables that `\gset` may have set, one for each column."""
        self._others = True
        words = {word.lower() for word in re.findall(r"\w+", statement)}
        simple = re.match(r"\s*(?:SELECT|WITH|INSERT|UPDATE|DELETE)\b", statement, re.IGNORECASE)
        listed = simple and "table" not in words and not _ALL.search(statement)
        for name in self._known:
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and (not listed or rest.lower() in words):
                self._known[name] = None

    def _maybe(self, name: str) -> bool:
        return self._others or name.isupper()  # psql's own


def read(raw: str, variables: Variables, *, semicolon: bool = False) -> list[Argument]:
    """Return a command's arguments.

    Args:
        raw: as they are written.
        variables: whose values are substituted.
        semicolon: whether a semicolon at the end of an argument is not part of it.
    """
    found: list[Argument] = []
    parts: list[tuple[str | None, bool]] = []
    program = False
    for match in [*_PART.finditer(raw), None]:
        if match is None or match.lastgroup in ("space", "end"):
            if parts:
                found.append(Argument(_joined(parts, semicolon=semicolon), program))
            parts, program = [], False
            if match is None or match.lastgroup == "end":
                break
            continue
        program |= match.lastgroup == "program"
        parts.append((_value(match, variables), match.lastgroup == "plain"))
    return found


def copied_from(raw: str) -> Argument | None:
    r"""Return the file from which `\copy` reads; None if it reads none."""
    match = _COPY.match(raw)
    if match is None:
        return None
    if match["program"]:
        return Argument(None, program=True)
    return None if match["source"].lower() == "stdin" else Argument(_stripped(match["source"]))


def copied_to(raw: str) -> Argument | None:
    r"""Return the file that `\copy` writes; None if it writes none."""
    match = None if _COPY.match(raw) else _COPY_TO.match(raw)
    return Argument(_stripped(match["source"])) if match else None


def literal(text: str, variables: Variables) -> str | None:
    """Return the value of an SQL string, or of a variable that contains one; None if unknown."""
    if found := _LITERAL.match(text):
        return _unescaped(found[1]) if text[0] in "eE" else found[1].replace("''", "'")
    name = text[1:].strip("'")
    value = variables.value(name) if text[:1] == ":" and variables.is_set(name) else None
    if value is None or text[1] == "'":
        return value
    return literal(value, variables) if value[:1] != ":" else None


def truth(value: str | None) -> bool | None:
    r"""Return whether `\if` takes a value for true; None if that is not known."""
    if value is None:
        return None
    word = value.lower()
    return bool(word) and ("true".startswith(word) or "yes".startswith(word) or word in ("on", "1"))


def _stripped(source: str) -> str:
    return source[1:-1].replace("''", "'") if source[0] == "'" else source


def _value(match: re.Match[str], variables: Variables) -> str | None:
    match match.lastgroup:
        case "quoted":
            value: str | None = _unescaped(match["quoted"])
        case "program":
            value = None
        case "variable":
            value = variables.value(match["variable"])
        case "literal":
            value = _quoted(match[0], match["literal"], "'", variables)
        case "identifier":
            value = _quoted(match[0], match["identifier"], '"', variables)
        case "asked":
            there = variables.is_set(match["asked"])
            value = None if there is None else "TRUE" if there else "FALSE"
        case _:
            value = match[0]
    return value


def _quoted(whole: str, name: str, quote: str, variables: Variables) -> str | None:
    there = variables.is_set(name)
    value = variables.value(name)
    if there is None or value is None:
        return None
    return f"{quote}{value.replace(quote, 2 * quote)}{quote}" if there else whole


def _joined(parts: list[tuple[str | None, bool]], *, semicolon: bool) -> str | None:
    while semicolon and parts and parts[-1] == (";", True):
        parts.pop()
    values = [value for value, _ in parts]
    return None if None in values else "".join(value for value in values if value is not None)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_meant, text)


def _meant(match: re.Match[str]) -> str:
    octal, hexadecimal, plain = match.groups()
    if match[0] == "''":
        return "'"
    if octal or hexadecimal:
        return chr(int(octal, 8) if octal else int(hexadecimal, 16))
    return _CONTROLS.get(plain, plain)
