"""Which strategy is chosen, told by times that nobody had to wait for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from clonepool.postgres.clones.copy_choice import (
    AGAIN_EVERY,
    SAMPLES,
    WARM_UP,
    WINDOW,
    Chooser,
)
from clonepool.postgres.clones.copy_strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clonepool.postgres.clones.copy_choice import Turn

WAL, FILES, CLONE = Strategy.WAL_LOG, Strategy.FILE_COPY, Strategy.CLONE
EVERY = (WAL, FILES, CLONE)
TRIALS = len(EVERY) * (WARM_UP + SAMPLES)


class Bench:
    """A chooser, and a server on which each strategy takes a known time."""

    def __init__(self, times: Mapping[Strategy, float], of: tuple[Strategy, ...] = EVERY) -> None:
        self.under_way: set[Turn] = set()
        self.chooser = Chooser(of, self.under_way)
        self.times = dict(times)

    def chosen(self) -> Strategy | None:
        """Return the choice; a method, so that mypy knows that it changes."""
        return self.chooser.chosen

    def copy(self, *, urgent: bool = False) -> Strategy:
        """Make one clone, alone."""
        turn = self.chooser.begin(urgent=urgent)
        self.chooser.finished(turn, self.times[turn.strategy])
        return turn.strategy

    def copies(self, count: int, *, urgent: bool = False) -> list[Strategy]:
        """Make so many, one after another."""
        return [self.copy(urgent=urgent) for _ in range(count)]


def test_each_is_tried_in_turn_and_then_the_quickest_is_used() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    assert bench.chosen() is None
    assert bench.copies(TRIALS) == list(EVERY) * (WARM_UP + SAMPLES)
    assert bench.chosen() is CLONE
    assert set(bench.copies(20)) == {CLONE}


def test_the_first_copy_of_each_says_nothing() -> None:
    bench = Bench({WAL: 9.0, FILES: 0.2, CLONE: 0.3})
    bench.copies(len(EVERY) * WARM_UP)
    bench.times[WAL] = 0.1
    bench.copies(TRIALS)
    assert bench.chooser.chosen is WAL


def test_one_slow_moment_does_not_decide() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.01, CLONE: 0.02})
    bench.copies(len(EVERY) * WARM_UP)
    bench.times[FILES] = 5.0
    bench.copies(len(EVERY))
    bench.times[FILES] = 0.01
    bench.copies(TRIALS)
    assert bench.chooser.chosen is FILES


def test_with_one_candidate_there_is_nothing_to_measure() -> None:
    bench = Bench({WAL: 1.0}, (WAL,))
    assert bench.chooser.chosen is WAL
    assert set(bench.copies(3 * AGAIN_EVERY)) == {WAL}


def test_times_of_copies_in_company_are_not_compared_with_those_of_copies_alone() -> None:
    """What copied beside others took thrice as long, whatever the strategy."""
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    chooser = bench.chooser
    for _ in range(WARM_UP + SAMPLES):
        beside = [chooser.begin(), chooser.begin()]
        alone = chooser.begin(without=[turn.strategy for turn in beside])
        for turn in (*beside, alone):
            chooser.finished(turn, bench.times[turn.strategy] * 3)
            assert not turn.alone
    assert chooser.chosen is CLONE
    lonely = chooser.begin()
    assert lonely.alone
    chooser.finished(lonely, 0.03)
    assert chooser.chosen is CLONE


def test_who_copies_for_another_template_is_company_too() -> None:
    under_way: set[Turn] = set()
    one, other = Chooser(EVERY, under_way), Chooser(EVERY, under_way)
    first = one.begin()
    second = other.begin()
    one.finished(first, 1.0)
    other.gave_up(second)
    assert (first.alone, second.alone) == (False, False)
    assert one.begin().alone


@pytest.mark.parametrize("seed", range(20))
def test_a_choice_is_made_soon_however_many_are_under_way(seed: int) -> None:
    chance = random.Random(seed)
    bench = Bench({WAL: 0.03, FILES: 0.01, CLONE: 0.02})
    turns: list[Turn] = []
    begun = 0
    while bench.chooser.chosen is None:
        if turns and (len(turns) == 3 or chance.random() < 0.5):
            turn = turns.pop(chance.randrange(len(turns)))
            bench.chooser.finished(turn, bench.times[turn.strategy] * (1 if turn.alone else 3))
        else:
            turns.append(bench.chooser.begin())
            begun += 1
    assert bench.chooser.chosen is FILES
    assert begun <= 4 * TRIALS


def test_the_others_are_tried_again_now_and_then() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    assert set(bench.copies(AGAIN_EVERY)) == {CLONE}
    assert set(bench.copies(2)) == {WAL, FILES}
    assert set(bench.copies(AGAIN_EVERY)) == {CLONE}


def test_one_that_has_become_better_takes_over() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    bench.times[WAL] = 0.005
    bench.copies(5 * (AGAIN_EVERY + 2))
    assert bench.chooser.chosen is WAL


def test_one_that_is_hardly_better_does_not() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    bench.times[WAL] = 0.0095
    bench.copies(6 * (AGAIN_EVERY + 2))
    assert bench.chooser.chosen is CLONE


def test_one_that_was_far_slower_is_not_tried_again_by_turns() -> None:
    bench = Bench({WAL: 5.0, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    assert WAL not in bench.copies(4 * AGAIN_EVERY)


def test_one_that_was_slow_while_everything_was_is_tried_again() -> None:
    bench = Bench({WAL: 0.3, FILES: 0.2, CLONE: 0.1})
    bench.copies(TRIALS)
    bench.times = {WAL: 0.03, FILES: 0.02, CLONE: 0.01}
    bench.copies(AGAIN_EVERY)
    assert set(bench.copies(2)) == {WAL, FILES}
    bench.copies(AGAIN_EVERY)
    assert set(bench.copies(2)) == {WAL, FILES}


def test_nobody_is_made_to_wait_for_a_trial_by_turns() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    assert set(bench.copies(2 * AGAIN_EVERY, urgent=True)) == {CLONE}
    assert set(bench.copies(2)) == {WAL, FILES}


def test_when_the_chosen_one_takes_twice_as_long_all_are_measured_anew() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS + WINDOW)
    bench.times[CLONE] = 0.025
    bench.copies(WINDOW // 2 + 1)
    assert bench.chooser.measuring
    assert bench.chooser.chosen is CLONE, "until the new choice is made"
    bench.copies(TRIALS)
    assert bench.chooser.chosen is FILES
    assert not bench.chooser.measuring


def test_what_is_out_of_the_question_stays_so_when_the_chosen_one_becomes_slower() -> None:
    bench = Bench({WAL: 60.0, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS + WINDOW)
    bench.times[CLONE] = 0.025
    assert WAL not in bench.copies(2 * TRIALS)
    assert bench.chooser.chosen is FILES


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_not_taken_for_a_change(seed: int) -> None:
    """Times that differ by a factor of two for no reason are what a shared machine gives."""
    chance = random.Random(seed)
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    true, wasted = dict(bench.times), 0
    for _ in range(1000):
        bench.times = {each: true[each] * chance.lognormvariate(0, 0.35) for each in true}
        wasted += bench.copy() is not CLONE
    assert wasted < 120


def test_a_server_that_became_slower_on_the_whole_is_measured_anew_once() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS + WINDOW)
    bench.times = {strategy: seconds * 10 for strategy, seconds in bench.times.items()}
    bench.copies(WINDOW // 2 + 1 + TRIALS)
    assert bench.chooser.chosen is CLONE
    assert set(bench.copies(AGAIN_EVERY - TRIALS)) == {CLONE}


def test_a_server_that_became_quicker_is_held_to_its_new_times() -> None:
    bench = Bench({WAL: 0.3, FILES: 0.2, CLONE: 0.1})
    bench.copies(TRIALS)
    bench.times = {WAL: 0.03, FILES: 0.02, CLONE: 0.01}
    bench.copies(AGAIN_EVERY + WINDOW)
    bench.times[CLONE] = 0.03
    bench.copies(WINDOW)
    assert bench.chooser.measuring


def test_another_server_is_measured_from_the_beginning() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    late = bench.chooser.begin()
    bench.chooser.strike(WAL)
    bench.chooser.start_over()
    assert bench.chooser.chosen is None
    bench.chooser.finished(late, 0.001)
    assert bench.copies(TRIALS) == list(EVERY) * (WARM_UP + SAMPLES)


def test_one_that_is_struck_off_is_not_used_again() -> None:
    bench = Bench({WAL: 0.03, FILES: 0.02, CLONE: 0.01})
    bench.copies(TRIALS)
    bench.chooser.strike(CLONE)
    assert bench.chosen() is None
    assert CLONE not in bench.copies(TRIALS)
    assert bench.chosen() is FILES
    bench.chooser.strike(FILES)
    assert bench.chosen() is WAL
    assert not bench.chooser.measuring


def test_within_one_try_what_failed_is_not_tried_again() -> None:
    chooser = Bench({}).chooser
    turn = chooser.begin()
    chooser.gave_up(turn)
    assert chooser.has_other([turn.strategy])
    other = chooser.begin(without=[turn.strategy])
    assert other.strategy is not turn.strategy
    assert not chooser.has_other(EVERY)


def test_a_trial_may_take_a_few_times_what_another_took_and_no_longer() -> None:
    """A copy through the WAL can take hundreds of times what a reflink takes."""
    bench = Bench({WAL: 60.0, FILES: 0.5, CLONE: 1.0}, (FILES, WAL, CLONE))
    chooser = bench.chooser
    assert chooser.begin().limit is None
    bench.under_way.clear()
    turn = chooser.begin()
    chooser.gave_up(turn)
    bench = Bench(bench.times, (FILES, WAL, CLONE))
    bench.copy()
    turn = bench.chooser.begin()
    assert (turn.strategy, turn.limit) == (WAL, 2.0)
    bench.chooser.late(turn)
    assert WAL not in bench.copies(TRIALS)
    assert bench.chooser.chosen is FILES
    assert bench.chooser.begin().limit is None, "the chosen one has all the time there is"


def test_a_short_trial_gets_a_second_at_least() -> None:
    bench = Bench({WAL: 0.01, FILES: 0.01, CLONE: 0.01})
    bench.copy()
    assert bench.chooser.begin().limit == 1.0


def test_when_all_others_were_late_the_one_that_is_left_is_used() -> None:
    chooser = Bench({}).chooser
    for strategy in (WAL, FILES):
        turn = chooser.begin()
        assert turn.strategy is strategy
        chooser.late(turn)
    assert chooser.chosen is CLONE
    last = chooser.begin()
    chooser.late(last)
    assert chooser.begin().strategy is CLONE
