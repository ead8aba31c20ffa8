"""Chooses how the next clone of a template is copied.

Which strategy is the quickest depends on the file system, on fsync, on the template's size and on
the server's load, so it is measured with the clones that are made anyway:

1. Until there are `SAMPLES` times of each strategy, the strategies take turns. The first `WARM_UP`
   copies of each do not count, because they find the caches cold.
2. The strategy with the least median is chosen. Copies that ran alone are compared with each other,
   and so are copies that ran together.
3. After `REMEASURE_AFTER` copies all strategies are measured again. The chosen one stays unless
   another is `CLEARLY_BETTER` times as quick.
4. A strategy that takes `FAR` times as long as the quickest is not tried again until the server or
   the template is another one. Neither is one that the server refuses.

How the server is made to copy in one way or another is in `postgres.clones.copy_strategy`; the
copying and the timing are in `postgres.clones.copier`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

WARM_UP = 1
"""Number of copies by each strategy that are not counted."""
SAMPLES = 3
"""Number of times of each strategy that are compared."""
REMEASURE_AFTER = 150
"""Number of copies by the chosen strategy after which all are measured again."""
FAR = 4.0
"""Ratio to the quickest strategy's time from which a strategy is not tried again."""
CLEARLY_BETTER = 1.25
"""Ratio by which another strategy must be quicker to replace the chosen one."""
SHORTEST_LIMIT_SECONDS = 1.0
"""Least time limit of a copy by a strategy that is being measured."""


class Strategy(StrEnum):
    """A way to copy a database: page by page through the WAL, by files, or by sharing blocks."""

    WAL_LOG = "wal_log"
    FILE_COPY = "file_copy"
    CLONE = "clone"


class CopyAttempt:
    """One copy that is under way.

    Attributes:
        strategy: how it is made.
        limit: time limit in seconds; None for that of any copy.
        alone: whether no other copy was under way at any time during it.
    """

    def __init__(self, strategy: Strategy, limit: float | None, epoch: int) -> None:
        self.strategy = strategy
        self.limit = limit
        self.alone = True
        self.epoch = epoch


class CopyChooser:
    """Chooses the strategy of one template's next clone from how long the last copies took.

    Args:
        candidates: the strategies to choose from, at least one; the likeliest first.
        under_way: the copies of all templates that are under way on the server; shared by all
            choosers.

    Attributes:
        chosen: the quickest strategy; None until it is known.
        measuring: whether the strategies take turns.
    """

    def __init__(self, candidates: tuple[Strategy, ...], under_way: set[CopyAttempt]) -> None:
        self.candidates = candidates
        self._under_way = under_way
        self._epoch = 0
        self.start_over()

    def start_over(self) -> None:
        """Forget everything: the server or the template is another one."""
        self._epoch += 1
        self._refused: set[Strategy] = set()
        self._slow: set[Strategy] = set()
        self._finished: Counter[Strategy] = Counter()
        self._least: dict[Strategy, float] = {}
        self.chosen: Strategy | None = None
        self._measure()

    def begin(self, *, urgent: bool = False, without: Collection[Strategy] = ()) -> CopyAttempt:
        """Say how the next clone is to be copied.

        Each attempt must end in `finished`, `failed` or `too_slow`.

        Args:
            urgent: whether a client waits for the clone; it is then made by the chosen strategy, if
                there is one.
            without: strategies that have failed for this clone; `has_other` must be true of them.
        """
        strategy = self._next(urgent=urgent, without=without)
        self._begun[strategy] += 1
        attempt = CopyAttempt(strategy, self._limit(strategy), self._epoch)
        self._under_way.add(attempt)
        if len(self._under_way) > 1:
            for each in self._under_way:
                each.alone = False
        return attempt

    def finished(self, attempt: CopyAttempt, seconds: float) -> None:
        """Record that a clone is ready, and how long it took from its beginning."""
        self._under_way.discard(attempt)
        if attempt.epoch != self._epoch:
            return
        strategy = attempt.strategy
        self._finished[strategy] += 1
        self._least[strategy] = min(seconds, self._least.get(strategy, seconds))
        if self._finished[strategy] > WARM_UP and self.measuring:
            self._times[strategy, attempt.alone].append(seconds)
            self._decide()
        elif strategy is self.chosen:
            self._copies_left -= 1
            if self._copies_left <= 0 and len(self._usable()) > 1:
                self._measure()

    def failed(self, attempt: CopyAttempt) -> None:
        """Record that a copy failed, which does not tell how long it takes."""
        self._under_way.discard(attempt)

    def too_slow(self, attempt: CopyAttempt) -> None:
        """Record that a copy exceeded its limit: its strategy is not tried again."""
        self._under_way.discard(attempt)
        strategy = attempt.strategy
        is_trial = strategy is not self.chosen and self._usable() != [strategy]
        if attempt.epoch == self._epoch and is_trial:
            self._slow.add(strategy)
            self._decide()

    def refuse(self, strategy: Strategy) -> None:
        """Never use a strategy again: it failed where another one did not.

        When that has happened to each of them, none is to blame, and all may be used again.
        """
        self._refused.add(strategy)
        if not self._usable():
            self._slow.clear()
        if not self._usable():
            self._refused.clear()
            self.chosen = strategy  # so that all are measured again
        if self.chosen is strategy:
            self.chosen = None
            self._measure()
        else:
            self._decide()

    def has_other(self, failed: Collection[Strategy]) -> bool:
        """Say whether there is a strategy besides those that failed."""
        return any(each not in failed and each not in self._refused for each in self.candidates)

    def seconds(self) -> dict[Strategy, float]:
        """Return the median time of each strategy as last measured."""
        times: defaultdict[Strategy, list[float]] = defaultdict(list)
        for (strategy, _), seconds in self._times.items():
            times[strategy] += seconds
        return {strategy: median(seconds) for strategy, seconds in times.items() if seconds}

    def _usable(self) -> list[Strategy]:
        return [each for each in self.candidates if each not in self._refused | self._slow]

    def _next(self, *, urgent: bool, without: Collection[Strategy]) -> Strategy:
        usable = [each for each in self._usable() if each not in without]
        if self.chosen in usable and (urgent or not self.measuring):
            return self.chosen
        if usable:
            return min(usable, key=lambda each: self._begun[each])
        return next(s for s in self.candidates if s not in without and s not in self._refused)

    def _limit(self, strategy: Strategy) -> float | None:
        """Return the time limit of a copy: while measuring, `FAR` times the quickest other copy."""
        if strategy is self.chosen:
            return None
        others = [
            self._least[each]
            for each in self._usable()
            if each is not strategy and each in self._least
        ]
        return max(SHORTEST_LIMIT_SECONDS, FAR * min(others)) if others else None

    def _measure(self) -> None:
        """Choose the strategies in turn until there are enough times of each."""
        self.measuring = True
        self._begun: Counter[Strategy] = Counter()
        self._times: defaultdict[tuple[Strategy, bool], list[float]] = defaultdict(list)
        self._copies_left = REMEASURE_AFTER
        self._decide()

    def _decide(self) -> None:
        """Choose a strategy if enough is known."""
        usable = self._usable()
        if not self.measuring:
            return
        if len(usable) == 1:
            self.chosen, self.measuring = usable[0], False
            return
        for alone in (True, False):
            if all(len(self._times[each, alone]) >= SAMPLES for each in usable):
                medians = {each: median(self._times[each, alone]) for each in usable}
                quickest = min(usable, key=medians.__getitem__)
                self._slow |= {each for each in usable if medians[each] >= FAR * medians[quickest]}
                known = medians.get(self.chosen) if self.chosen is not None else None
                if known is None or known >= CLEARLY_BETTER * medians[quickest]:
                    self.chosen = quickest
                self.measuring = False
                return
