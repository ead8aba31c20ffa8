r"""Which branches of psql's `\if` run, as far as that can be told beforehand: None is perhaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clonepool.postgres.templates.psql.scripts import Said

BRANCHING = frozenset({r"\if", r"\elif", r"\else", r"\endif"})


class _Branch(NamedTuple):
    r"""Where an `\if` stands.

    Attributes:
        runs: whether the present branch does.
        taken: whether it or one before it does.
    """

    runs: bool | None
    taken: bool | None


class Branches:
    r"""The `\if`s of one file in which a line stands; each ends in the file in which it begins."""

    def __init__(self) -> None:
        self._open: list[_Branch] = []

    @property
    def run(self) -> bool | None:
        """Whether the present line is run."""
        return _all(branch.runs for branch in self._open)

    def meet(self, said: Said, condition: Callable[[Said], bool | None]) -> None:
        """Go on at one of these commands.

        Args:
            said: which.
            condition: tells whether its condition holds; not asked where psql does not look at it.
        """
        if said.what == r"\if":
            holds = condition(said) if self.run is not False else False
            self._open.append(_Branch(holds, holds))
        elif self._open:  # else psql complains
            last = self._open.pop()
            if said.what == r"\endif":
                return
            asked = said.what == r"\elif" and last.taken is not True and self.run is not False
            holds = condition(said) if asked else said.what == r"\else"
            runs = _all([_not(last.taken), holds])
            self._open.append(_Branch(runs, _not(_all([_not(last.taken), _not(holds)]))))


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _all(values: Iterable[bool | None]) -> bool | None:
    found = set(values)
    return False if False in found else None if None in found else True
