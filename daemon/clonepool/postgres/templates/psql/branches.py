r"""Which branches of psql's `\if` run, as far as that is known in advance; None means perhaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonepool.postgres.templates.psql.script_events import ScriptEvent

BRANCHING = frozenset({r"\if", r"\elif", r"\else", r"\endif"})


class _Branch(NamedTuple):
    r"""An `\if` that has begun.

    Attributes:
        runs: whether the present branch runs.
        taken: whether this branch or one before it runs.
    """

    runs: bool | None
    taken: bool | None


class Branches:
    r"""The `\if`s around the present line of one file; each ends in the file in which it begins."""

    def __init__(self) -> None:
        self._open: list[_Branch] = []

    @property
    def run(self) -> bool | None:
        """Whether the present line runs."""
        return _all(branch.runs for branch in self._open)

    def meet(self, event: ScriptEvent, condition: Callable[[ScriptEvent], bool | None]) -> None:
        """Continue with one of the `BRANCHING` commands.

        Args:
            event: the command.
            condition: evaluates its condition; it is called only if psql would evaluate it.
        """
        if event.what == r"\if":
            holds = condition(event) if self.run is not False else False
            self._open.append(_Branch(holds, holds))
        elif self._open:  # otherwise psql reports an error
            last = self._open.pop()
            if event.what == r"\endif":
                return
            asked = event.what == r"\elif" and last.taken is not True and self.run is not False
            holds = condition(event) if asked else event.what == r"\else"
            runs = _all([_not(last.taken), holds])
            self._open.append(_Branch(runs, _not(_all([_not(last.taken), _not(holds)]))))


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _all(values: Iterable[bool | None]) -> bool | None:
    found = set(values)
    return False if False in found else None if None in found else True
