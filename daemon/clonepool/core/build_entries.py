"""What the build schedule knows of each configured template; only `build_schedule` changes it."""

from __future__ import annotations

import msgspec

from clonepool.errors import ClonepoolError  # noqa: TC001 - msgspec reads the annotation


class Rule(msgspec.Struct, frozen=True):
    """What the configuration says about building one template.

    Attributes:
        extends: the template that it extends; empty for none.
        serves_previous: whether a build that fails leaves the generation in use that was there.
    """

    extends: str = ""
    serves_previous: bool = False


class Entry(msgspec.Struct, eq=False):
    """One template.

    Attributes:
        seen: the fingerprint that was last built or is to be built, or the reason why there is
            none; None before anything was seen.
        current: the short name of the generation in use; empty for none.
        is_settled: whether the generation in use is the wanted one.
        failure: of the last build, if its outcome is what is told of the template.
        is_edited: whether it may have changed since its last build began.
        is_anew: whether the next build is to build even if nothing is seen to have changed.
        is_damaged: whether the generation in use is to be dropped before the next build.
        is_building: whether it has a place.
        builds_anew: what `is_anew` was when its build began.
        repeat_at: when its build is repeated, in the place that it has.
        not_before: when its build may be tried again, in monotonic seconds.
        repeats: how often its build was repeated in this place.
        is_accompanied: whether another template was built at the same time.
        is_alone: whether it is to be built while no other is.
        is_postponed: whether its waiters have been told of an obstacle.
        began: when its build began.
        asked: requests that the next build answers.
        answered: requests that the build under way answers.
    """

    template: str
    rule: Rule
    seen: str | None = None
    current: str = ""
    is_settled: bool = False
    failure: ClonepoolError | None = None
    is_edited: bool = False
    is_anew: bool = False
    is_damaged: bool = False
    is_building: bool = False
    builds_anew: bool = False
    repeat_at: float | None = None
    not_before: float = 0.0
    repeats: int = 0
    is_accompanied: bool = False
    is_alone: bool = False
    is_postponed: bool = False
    began: float = 0.0
    asked: list[int] = []
    answered: list[int] = []

    def is_due_again(self, now: float) -> bool:
        """Say whether the pause before a repeated build is over."""
        return self.repeat_at is not None and self.repeat_at <= now
