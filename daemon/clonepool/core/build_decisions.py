"""What the build schedule has done: frozen decisions, carried out by the service."""

from __future__ import annotations

import msgspec

from clonepool.errors import ClonepoolError  # noqa: TC001 - msgspec reads the annotation


class Look(msgspec.Struct, frozen=True):
    """Look at the sources of these templates once more, within a limit of seconds."""

    templates: tuple[str, ...]
    seconds: float


class StartBuild(msgspec.Struct, frozen=True):
    """Find or build the generation of a template.

    Attributes:
        anew: build it although one with the same fingerprint may be there.
        is_damaged: drop the generation in use before.
    """

    template: str
    anew: bool
    is_damaged: bool


class Tidy(msgspec.Struct, frozen=True):
    """Drop the generations that are no longer needed: nothing is due or being built."""


class MarkStale(msgspec.Struct, frozen=True):
    """Grant nothing more of the generation in use: it is not what the sources say."""

    template: str
    reasons: list[str]


class Lose(msgspec.Struct, frozen=True):
    """Make no clones of the generation in use: it is gone from the server, or `damaged`."""

    template: str
    damaged: bool


class Serve(msgspec.Struct, frozen=True):
    """Make and grant clones of the generation that was built."""

    template: str
    generation: str


class ServePrevious(msgspec.Struct, frozen=True):
    """The build failed: continue with the generation in use."""

    template: str
    generation: str


class Fail(msgspec.Struct, frozen=True):
    """Refuse requests with the error of the build."""

    template: str
    error: ClonepoolError


class Postpone(msgspec.Struct, frozen=True):
    """Tell the waiters what keeps the build from continuing; None when it continues."""

    template: str
    obstacle: ClonepoolError | None


class AnswerBuild(msgspec.Struct, frozen=True):
    """Tell the requests how the build ended that they asked for, `seconds` after it began."""

    template: str
    requests: tuple[int, ...]
    error: ClonepoolError | None
    seconds: float


class CompareFiles(msgspec.Struct, frozen=True):
    """Compare the files with what was built: they may have changed during the build."""


BuildStep = Look | StartBuild | Tidy
"""What is to be done next; it takes time."""

BuildOutcome = (
    MarkStale | Lose | Serve | ServePrevious | Fail | Postpone | AnswerBuild | CompareFiles
)  # fmt: skip
"""What follows from an event; it is done at once, in order."""
