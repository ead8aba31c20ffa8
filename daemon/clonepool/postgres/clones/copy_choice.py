"""Which way of copying a database is the quickest here: found out by using each in turn.

Pure: no I/O, no clock. Whatever decides how the next clone is copied must live here. Which is the
quickest depends on the file system, on fsync, on the template's size and on what else the server
does, so it is measured; every clone that is measured goes into the pool like any other.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from clonepool.postgres.clones.copy_strategy import Strategy

WARM_UP = 1
"""So many copies of each say nothing: they find the server's and the machine's caches cold."""
SAMPLES = 3
"""So many copies of each are compared."""
AGAIN_EVERY = 50
"""After so many copies the other strategies are tried again, once each."""
DRIFT = 2.0
"""When the chosen one takes so many times what it took, all are measured anew."""
FAR = 4.0
"""One that takes so many times what the quickest takes is out of the question."""
CLEARLY_BETTER = 1.25
"""Another takes over when it is so many times as quick: noise changes nothing."""
SHORTEST_LIMIT_SECONDS = 1.0
WINDOW = 11
"""So many of the latest copies of each are remembered: with fewer, noise would look like drift."""


class Turn:
    """One copy that is under way.

    Attributes:
        strategy: how it is made.
        limit: seconds that it may take at most, None for as long as any copy may.
        alone: whether no other copy was under way at any moment of it.
    """

    def __init__(self, strategy: Strategy, limit: float | None, life: int) -> None:
        self.strategy = strategy
        self.limit = limit
        self.life = life
        self.alone = True


class Chooser:
    """Chooses the strategy of one template's next clone, from what the last ones took.

    Copies that ran alone are compared with such, and those in company with such: what three at a
    time take says nothing about one.

    Args:
        able: the candidates, at least one.
        under_way: the copies of all templates that are under way on the server.

    Attributes:
        chosen: the quickest, None as long as that is not known.
        measuring: whether the candidates are tried in turn.
    """

    def __init__(self, able: tuple[Strategy, ...], under_way: set[Turn]) -> None:
        self.candidates = able
        self._under_way = under_way
        self._life = 0
        self.start_over()

    def start_over(self) -> None:
        """Forget everything: the server, or the template, is another."""
        self._life += 1
        self._struck: set[Strategy] = set()
        self._finished: Counter[Strategy] = Counter()
        self._slower: dict[Strategy, float] = {}
        self.chosen: Strategy | None = None
        self._measure()

    def _measure(self, without: Collection[Strategy] = ()) -> None:
        """Try all that are left in turn, `without` those that are out of the question."""
        self._late = set(without)
        self._begun: Counter[Strategy] = Counter()
        self._least: dict[Strategy, float] = {}
        self._times: defaultdict[tuple[Strategy, bool], deque[float]] = defaultdict(
            lambda: deque(maxlen=WINDOW)
        )
        self._again: deque[Strategy] = deque()
        self.measuring = True
        self._settle()

    # Copies -------------------------------------------------------------------------------

    def begin(self, *, urgent: bool = False, without: Collection[Strategy] = ()) -> Turn:
        """Say how the next clone is to be copied; every turn must end in one of the ways below.

        Args:
            urgent: somebody waits for it, so it is not the one to try another strategy with.
            without: what failed in the same try; `has_other` said that there are others.
        """
        strategy = self._pick(urgent=urgent, without=without)
        self._begun[strategy] += 1
        turn = Turn(strategy, self._limit(strategy), self._life)
        self._under_way.add(turn)
        if len(self._under_way) > 1:
            for each in self._under_way:
                each.alone = False
        return turn

    def finished(self, turn: Turn, seconds: float) -> None:
        """The clone is there, and took so long from its beginning until it was ready."""
        self._under_way.discard(turn)
        if turn.life != self._life:
            return
        strategy = turn.strategy
        self._finished[strategy] += 1
        self._least[strategy] = min(seconds, self._least.get(strategy, seconds))
        if self._finished[strategy] <= WARM_UP:
            return
        self._times[strategy, turn.alone].append(seconds)
        if self.measuring:
            self._settle()
        elif strategy is self.chosen:
            self._review(strategy, alone=turn.alone)
        elif (times := self._advantage(strategy, alone=turn.alone)) >= CLEARLY_BETTER:
            self._take_over(strategy, times)

    def gave_up(self, turn: Turn) -> None:
        """The copy failed, and that says nothing about how long it takes."""
        self._under_way.discard(turn)

    def late(self, turn: Turn) -> None:
        """The copy was given up because it took too long: it is not tried again for now."""
        self._under_way.discard(turn)
        if turn.life == self._life and self._rivals(turn.strategy):
            self._late.add(turn.strategy)
            self._slower[turn.strategy] = FAR
            self._settle()

    def strike(self, strategy: Strategy) -> None:
        """Never use that one again: it failed where another did not."""
        self._struck.add(strategy)
        if self.chosen is strategy:
            self.chosen = None
            self._measure()
        else:
            self._settle()

    def has_other(self, failed: Collection[Strategy]) -> bool:
        """Say whether there is one beside those that failed."""
        return any(strategy not in failed for strategy in self._left())

    def took(self) -> dict[Strategy, float]:
        """Return the seconds that each takes of late, of those that were measured."""
        times: defaultdict[Strategy, list[float]] = defaultdict(list)
        for (strategy, _), seconds in self._times.items():
            times[strategy] += seconds
        return {strategy: median(seconds) for strategy, seconds in times.items() if seconds}

    # Inside -------------------------------------------------------------------------------

    def _left(self) -> list[Strategy]:
        return [each for each in self.candidates if each not in self._struck]

    def _contenders(self) -> list[Strategy]:
        return [each for each in self._left() if each not in self._late]

    def _rivals(self, strategy: Strategy) -> list[Strategy]:
        return [each for each in self._contenders() if each is not strategy]

    def _pick(self, *, urgent: bool, without: Collection[Strategy]) -> Strategy:
        possible = [each for each in self._contenders() if each not in without]
        if self.measuring and possible:
            return min(possible, key=lambda each: self._begun[each])
        if self._again and not urgent and (trial := self._again.popleft()) in possible:
            return trial
        if self.chosen is not None and self.chosen not in without:
            return self.chosen
        return (possible or [each for each in self._left() if each not in without])[0]

    def _limit(self, strategy: Strategy) -> float | None:
        """Return how long a trial may take: a few times what the quickest other one took."""
        if strategy is self.chosen and not self.measuring:
            return None
        others = [self._least[each] for each in self._rivals(strategy) if each in self._least]
        return max(SHORTEST_LIMIT_SECONDS, FAR * min(others)) if others else None

    def _settle(self) -> None:
        """Choose, if enough is known."""
        contenders = self._contenders()
        if not self.measuring:
            return
        if len(contenders) == 1:
            self._choose(contenders[0])
            return
        for alone in (True, False):
            if all(len(self._times[each, alone]) >= SAMPLES for each in contenders):
                took = {each: median(self._times[each, alone]) for each in contenders}
                best = min(contenders, key=lambda each: took[each])
                self._slower.update({each: took[each] / took[best] for each in contenders})
                self._choose(best)
                return

    def _choose(self, strategy: Strategy) -> None:
        self.chosen = strategy
        self.measuring = False
        self._slower[strategy] = 1.0
        self._again.clear()
        self._take_stock()

    def _take_stock(self) -> None:
        """Note what the chosen one takes now, alone and in company, to see when that changes."""
        self._since = 0
        self._usual: dict[bool, float] = {}
        for alone in (True, False):
            self._note_usual(alone=alone)

    def _note_usual(self, *, alone: bool) -> None:
        if self.chosen is not None and len(self._times[self.chosen, alone]) == WINDOW:
            self._usual.setdefault(alone, median(self._times[self.chosen, alone]))

    def _review(self, chosen: Strategy, *, alone: bool) -> None:
        """See whether the chosen one has become slow, or the others are to be tried again."""
        if not self._rivals(chosen):
            return
        self._note_usual(alone=alone)
        grown = median(self._times[chosen, alone]) / self._usual.get(alone, math.inf)
        if grown > DRIFT:
            self._measure_anew(chosen, grown)
            return
        self._since += 1
        if self._since >= AGAIN_EVERY:
            self._again.extend(each for each in self._rivals(chosen) if not self._is_far(each))
            self._take_stock()

    def _measure_anew(self, chosen: Strategy, grown: float) -> None:
        """Try all again, but not those that are out of the question even so."""
        for each in self.candidates:
            if each is not chosen and each in self._slower:
                self._slower[each] /= grown
        self._measure(without=[each for each in self.candidates if self._is_far(each)])

    def _is_far(self, strategy: Strategy) -> bool:
        """Say whether it was so much slower, at the same time, that not even trying it pays."""
        return self._slower.get(strategy, 1.0) >= FAR

    def _take_over(self, strategy: Strategy, times: float) -> None:
        """Choose another, so many times as quick as the one before."""
        self._slower = {each: slower * times for each, slower in self._slower.items()}
        self._choose(strategy)

    def _advantage(self, strategy: Strategy, *, alone: bool) -> float:
        """Return how many times as quick as the chosen one it is; 1 when too little is known."""
        if self.chosen is None or strategy not in self._contenders():
            return 1.0
        new, old = self._times[strategy, alone], self._times[self.chosen, alone]
        return median(old) / median(new) if min(len(new), len(old)) >= SAMPLES else 1.0
