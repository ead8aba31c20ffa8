"""Why a clone is not rewound."""

from __future__ import annotations

from clonepool.errors import ClonepoolError, StatementError


class CannotRewindError(ClonepoolError):
    """The clone cannot be put back with certainty; it has to be recreated."""

    code = "cannot_rewind"


class PinError(ClonepoolError):
    """A generation is not what it was when it was built; it has to be rebuilt."""

    code = "generation_changed"


class LockOutError(StatementError):
    """The former holder of a clone could not be locked out."""


class LeftoversError(CannotRewindError):
    """Something that outlives sessions has to be removed first."""
