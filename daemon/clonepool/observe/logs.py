"""Writes log events as lines to stderr: readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Literal, TextIO

import structlog

from clonepool import printable

if TYPE_CHECKING:
    from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

_TRACEBACKS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
"""Without the local variables of frames: they can be passwords, or URLs with passwords."""


def configure(
    level: Literal["debug", "info", "warning", "error"],
    style: Literal["auto", "console", "json"],
) -> None:
    """Configure structlog for this process.

    Args:
        level: the least level that is written.
        style: of the lines; `auto` is `console` on a terminal and `json` elsewhere.
    """
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [_made_printable, structlog.dev.ConsoleRenderer(exception_formatter=_traceback)]
        if console
        else [
            structlog.processors.ExceptionRenderer(_TRACEBACKS),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _made_printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Make foreign text safe for a terminal; JSON escapes it anyway."""
    return {key: _shown(value) for key, value in event.items()}


def _shown(value: object) -> object:
    if isinstance(value, str):
        return printable.line(value)
    if value is None or isinstance(value, bool | int | float | tuple | BaseException):
        return value  # a tuple is the information about an exception
    return printable.line(value)


def _traceback(stream: TextIO, about: ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, about)
    stream.write(printable.block(text.getvalue()))
