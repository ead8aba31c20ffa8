"""Which copy strategy is chosen, given how long each takes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from clonepool.core.copy_choice import (
    REMEASURE_AFTER,
    SAMPLES,
    WARM_UP,
    CopyAttempt,
    CopyChooser,
    Strategy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

WAL, FILES, CLONE = Strategy.WAL_LOG, Strategy.FILE_COPY, Strategy.CLONE
EVERY = (WAL, FILES, CLONE)
TRIALS = len(EVERY) * (WARM_UP + SAMPLES)
ROUND = len(EVERY) * SAMPLES


class Bench:
    """A chooser, and a server on which each strategy takes a known time."""

    def __init__(self, times: Mapping[Strategy, float], of: tuple[Strategy, ...] = EVERY) -> None:
        self.chooser = CopyChooser(of, set())
        self.times = dict(times)

    @property
    def chosen(self) -> Strategy | None:
        """The choice."""
        return self.chooser.chosen

    def copy(self, *, urgent: bool = False) -> Strategy:
        """Make one clone, alone."""
        attempt = self.chooser.begin(urgent=urgent)
        self.chooser.finished(attempt, self.times[attempt.strategy])
        return attempt.strategy

    def copies(self, count: int, *, urgent: bool = False) -> list[Strategy]:
        """Make some clones one after another."""
        return [self.copy(urgent=urgent) for _ in range(count)]


def test_each_is_tried_in_turn_and_then_the_quickest_is_used() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    assert bench.chosen is None
    assert bench.copies(TRIALS) == list(EVERY) * (WARM_UP + SAMPLES)
    assert bench.chooser.chosen is CLONE
    assert set(bench.copies(20)) == {CLONE}


def test_the_first_copy_of_each_is_not_counted() -> None:
    bench = Bench({WAL: 9.0, FILES: 0.2, CLONE: 0.3})
    bench.copies(len(EVERY) * WARM_UP)
    bench.times[WAL] = 0.1
    bench.copies(TRIALS)
    assert bench.chosen is WAL


def test_one_slow_moment_does_not_decide() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.01, CLONE: 0.02})
    bench.copies(len(EVERY) * WARM_UP)
    bench.times[FILES] = 5.0
    bench.copies(len(EVERY))
    bench.times[FILES] = 0.01
    bench.copies(TRIALS)
    assert bench.chosen is FILES


def test_with_one_candidate_there_is_nothing_to_measure() -> None:
    bench = Bench({WAL: 1.0}, (WAL,))
    assert bench.chosen is WAL
    assert set(bench.copies(3 * REMEASURE_AFTER)) == {WAL}
    assert not bench.chooser.measuring


def test_times_of_copies_in_company_are_not_compared_with_those_of_copies_alone() -> None:
    """A copy beside others takes three times as long, whatever the strategy."""
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    chooser = bench.chooser
    for _ in range(WARM_UP + SAMPLES):
        attempts = [chooser.begin(), chooser.begin()]
        attempts.append(chooser.begin(without=[attempt.strategy for attempt in attempts]))
        for attempt in attempts:
            chooser.finished(attempt, bench.times[attempt.strategy] * 3)
            assert not attempt.alone
    assert chooser.chosen is CLONE
    single = chooser.begin()
    assert single.alone


def test_a_copy_of_another_template_is_company_too() -> None:
    under_way: set[CopyAttempt] = set()
    one, other = CopyChooser(EVERY, under_way), CopyChooser(EVERY, under_way)
    first = one.begin()
    second = other.begin()
    one.finished(first, 1.0)
    other.failed(second)
    assert (first.alone, second.alone) == (False, False)
    assert one.begin().alone


@pytest.mark.parametrize("seed", range(20))
def test_a_choice_is_made_soon_however_many_are_under_way(seed: int) -> None:
    chance = random.Random(seed)
    bench = Bench({WAL: 0.03, FILES: 0.01, CLONE: 0.02})
    attempts: list[CopyAttempt] = []
    begun = 0
    while bench.chosen is None:
        if attempts and (len(attempts) == 3 or chance.random() < 0.5):
            attempt = attempts.pop(chance.randrange(len(attempts)))
            seconds = bench.times[attempt.strategy] * (1 if attempt.alone else 3)
            bench.chooser.finished(attempt, seconds)
        else:
            attempts.append(bench.chooser.begin())
            begun += 1
    assert bench.chosen is FILES
    assert begun <= 4 * TRIALS


def test_all_are_measured_again_seldom() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    assert set(bench.copies(REMEASURE_AFTER)) == {CLONE}
    assert bench.copies(ROUND) == list(EVERY) * SAMPLES
    assert set(bench.copies(REMEASURE_AFTER)) == {CLONE}


def test_one_that_has_become_quicker_is_chosen_when_it_is_measured_again() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    bench.times[WAL] = 0.005
    bench.copies(REMEASURE_AFTER + ROUND)
    assert bench.chosen is WAL


def test_one_that_is_hardly_quicker_is_not() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    bench.times[WAL] = 0.0095
    bench.copies(6 * (REMEASURE_AFTER + ROUND))
    assert bench.chosen is CLONE


def test_a_chosen_one_that_has_become_slow_is_replaced_when_it_is_measured_again() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    bench.times[CLONE] = 0.5
    bench.copies(REMEASURE_AFTER + ROUND)
    assert bench.chosen is FILES


def test_one_that_was_far_slower_is_not_tried_again() -> None:
    bench = Bench({WAL: 0.9, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    assert WAL not in bench.copies(4 * REMEASURE_AFTER)


def test_one_that_was_slow_while_everything_was_is_tried_again() -> None:
    bench = Bench({WAL: 0.3, FILES: 0.2, CLONE: 0.1})
    bench.copies(TRIALS)
    bench.times = {WAL: 0.03, FILES: 0.02, CLONE: 0.01}
    bench.copies(REMEASURE_AFTER)
    assert set(bench.copies(ROUND)) == set(EVERY)


def test_no_client_waits_for_a_strategy_that_is_only_measured_again() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    assert set(bench.copies(2 * REMEASURE_AFTER, urgent=True)) == {CLONE}
    assert {WAL, FILES} <= set(bench.copies(ROUND))


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_not_taken_for_a_change(seed: int) -> None:
    """On a shared machine, times differ by a factor of two for no reason."""
    chance = random.Random(seed)
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    true, wasted = dict(bench.times), 0
    for _ in range(1000):
        bench.times = {each: true[each] * chance.lognormvariate(0, 0.35) for each in true}
        wasted += bench.copy() is not CLONE
    assert wasted < 120


def test_another_server_is_measured_from_the_beginning() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    old = bench.chooser.begin()
    bench.chooser.refuse(WAL)
    bench.chooser.start_over()
    assert bench.chosen is None
    bench.chooser.finished(old, 0.001)
    assert bench.copies(TRIALS) == list(EVERY) * (WARM_UP + SAMPLES)


def test_one_that_was_refused_is_not_used_again() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    chooser = bench.chooser
    bench.copies(TRIALS)
    chooser.refuse(CLONE)
    assert bench.chosen is None
    assert CLONE not in bench.copies(TRIALS)
    assert [chooser.chosen] == [FILES]
    chooser.refuse(FILES)
    assert [chooser.chosen] == [WAL]
    assert not chooser.measuring


def test_what_failed_for_a_clone_is_not_tried_again_for_it() -> None:
    chooser = Bench({}).chooser
    attempt = chooser.begin()
    chooser.failed(attempt)
    assert chooser.has_other([attempt.strategy])
    other = chooser.begin(without=[attempt.strategy])
    assert other.strategy is not attempt.strategy
    assert not chooser.has_other(EVERY)


def test_one_that_is_measured_is_limited_by_the_quickest_other() -> None:
    """A copy through the WAL can take hundreds of times what sharing blocks takes."""
    bench = Bench({WAL: 60.0, FILES: 0.5, CLONE: 1.0}, (FILES, WAL, CLONE))
    first = bench.chooser.begin()
    assert first.limit is None
    bench.chooser.finished(first, 0.5)
    attempt = bench.chooser.begin()
    assert (attempt.strategy, attempt.limit) == (WAL, 2.0)
    bench.chooser.too_slow(attempt)
    assert WAL not in bench.copies(TRIALS + 2 * REMEASURE_AFTER)
    assert bench.chosen is FILES
    assert bench.chooser.begin().limit is None, "the chosen one is not limited"


def test_the_limit_is_a_second_at_least() -> None:
    bench = Bench({WAL: 0.01, FILES: 0.01, CLONE: 0.01})
    bench.copy()
    assert bench.chooser.begin().limit == 1.0


def test_when_all_others_were_too_slow_the_last_one_is_used() -> None:
    chooser = Bench({}).chooser
    for strategy in (WAL, FILES):
        attempt = chooser.begin()
        assert attempt.strategy is strategy
        chooser.too_slow(attempt)
    assert chooser.chosen is CLONE
    chooser.too_slow(chooser.begin())
    assert chooser.begin().strategy is CLONE
    assert chooser.begin(without=[CLONE]).strategy is WAL, "slow is better than none"


def test_when_each_has_failed_where_another_did_not_all_are_measured_again() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    for strategy in EVERY:
        bench.chooser.refuse(strategy)
    assert bench.chooser.measuring
    assert set(bench.copies(TRIALS)) == set(EVERY)
    assert bench.chosen is CLONE
