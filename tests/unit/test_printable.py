from __future__ import annotations

import pytest

from clonepool import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [/x] — Größe 数 🙂", "plain [/x] — Größe 数 🙂"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\u202eevil\u2028\u2066", r"\u202eevil\u2028\u2066"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\ue0001"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert printable.line(text) == shown


def test_a_block_keeps_its_lines_and_tabs() -> None:
    assert printable.block("a\x1b\n\tb\r\n") == "a\\x1b\n\tb\\x0d\n"
