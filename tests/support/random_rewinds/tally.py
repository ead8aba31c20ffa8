"""Counts of a run so far, and tables of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from support.random_rewinds.lane import Outcome

AGES = {"never": 0, "1 to 9 times": 1, "10 to 29 times": 10, "30 times and more": 30}
"""How often a clone had been rewound before a round, by the least of each."""


class Tally:
    """Counts rounds."""

    def __init__(self) -> None:
        self.rewound = 0
        self.recreated = 0
        self._by_kind: dict[str, Counter[bool]] = {}
        self._by_age: dict[str, Counter[bool]] = {age: Counter() for age in AGES}

    @property
    def rounds(self) -> int:
        """How many there were."""
        return self.rewound + self.recreated

    @property
    def on_old_clones(self) -> int:
        """How many of them met a clone that had been rewound before."""
        return self.rounds - self._by_age["never"].total()

    def add(self, outcome: Outcome) -> None:
        """Count one round."""
        self.rewound += outcome.rewound
        self.recreated += not outcome.rewound
        for kind in outcome.kinds:
            self._by_kind.setdefault(kind, Counter())[outcome.rewound] += 1
        age = max((least, age) for age, least in AGES.items() if least <= outcome.before)[1]
        self._by_age[age][outcome.rewound] += 1

    def tables(self) -> list[Table]:
        """Return rounds by what was done, and by how often the clone had been rewound before."""
        by_kind = sorted(self._by_kind.items(), key=lambda item: -item[1].total())
        return [
            _table("what the lease did, among other things", dict(by_kind)),
            _table("the clone had been rewound before", self._by_age),
        ]


def _table(title: str, counted: dict[str, Counter[bool]]) -> Table:
    table = Table(title)
    for name in ("rounds", "rewound", "recreated"):
        table.add_column(name, justify="right")
    for name, counts in counted.items():
        numbers = (counts.total(), counts[True], counts[False])
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table
