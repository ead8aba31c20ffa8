"""Removes secrets from texts that users and other roles see: errors, logs, comments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HIDDEN = "***"
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s@]*@", re.IGNORECASE)
_KIND = r"[\w-]*(?:passw|pwd|secret|token|credential|api[-_]?key)[\w-]*"
_VALUE = r"""("[^"]*"|'[^']*'|\S+)"""
_GIVEN = re.compile(rf"((?:\b|--?){_KIND}=|--?{_KIND}\s+){_VALUE}", re.IGNORECASE)


def hide(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text without these secrets, and without passwords in URLs."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    return _IN_URL.sub(rf"\1:{HIDDEN}@", text)


def hide_in_command(line: str) -> str:
    """Return a command line without the values of options and variables that look like secrets.

    Secrets are recognized by the names of options. That is a guess, which suffices for errors;
    where more people can read the text, use a digest instead.
    """
    return _GIVEN.sub(rf"\1{HIDDEN}", hide(line))
