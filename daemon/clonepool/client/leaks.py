"""Warnings about sessions and changes that a lease left, when its release did not wait for them."""

from __future__ import annotations

import sys
import warnings

TYPE_CHECKING = False  # importing typing takes as long as all of the client
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LEAKED = "lease.leaked"
_MOST_NAMED = 5
_HERE = __file__.removesuffix("leaks.py")


class LeakWarning(ResourceWarning):
    """A lease left sessions open on its clone, or changes in the server as a whole.

    The daemon has ended the sessions, or is about to. If a filter turns the warning into an error,
    the call during which it arrived raises it, and its request is cancelled as by an interrupt.
    """


def warn_of_leaks(
    also: Callable[[str, dict[str, Any]], None] | None,
) -> Callable[[str, dict[str, Any]], None]:
    """Return a listener that passes each notification on to `also`, and then warns of leaks."""

    def hear(method: str, params: dict[str, Any]) -> None:
        if also is not None:
            also(method, params)
        if method == _LEAKED:
            warnings.warn(_sentence(params), LeakWarning, stacklevel=_callers_level())

    return hear


def _sentence(news: dict[str, Any]) -> str:
    """Return what was left; texts of others are quoted, so that no terminal obeys them."""
    leaked = news["leaked"]
    named = "; ".join(map(_name, leaked[:_MOST_NAMED]))
    more = f"; and {len(leaked) - _MOST_NAMED} more" if len(leaked) > _MOST_NAMED else ""
    return f"the lease of {news['database']}, a clone of {news['template']}, left: {named}{more}"


def _name(left: dict[str, Any]) -> str:
    if left["what"]:
        return f"a change of the server, {left['what']!r}"
    return (
        f"a session of {left['application_name']!r}, pid {left['pid']} ({left['state']}),"
        f" last query {left['query']!r}"
    )


def _callers_level() -> int:
    """Return the stacklevel, counted from the caller, of the code that uses the client."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - inspect takes long to import, for the same
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    return level
