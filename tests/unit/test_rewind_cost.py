"""When creating a new clone is cheaper than rewinding one."""

from __future__ import annotations

from clonepool.postgres.rewind.cost import Costs

MANY, FEW = 100_000, 10


def test_whatever_is_known_too_little_of_is_rewound() -> None:
    assert Costs().favor_rewind(MANY)


def test_little_is_always_rewound() -> None:
    costs = Costs()
    costs.record_recreate(0.000_001)
    assert costs.favor_rewind(FEW)


def test_what_takes_longer_than_a_new_clone_is_not_rewound() -> None:
    costs = Costs()
    costs.record_recreate(0.1)
    costs.record_rewind(1000, 0, 1.0)
    assert not costs.favor_rewind(10_000)
    assert costs.favor_rewind(50)


def test_the_limit_follows_what_both_take() -> None:
    slow, quick = Costs(), Costs()
    for costs, seconds in ((slow, 0.5), (quick, 0.005)):
        costs.record_recreate(0.2)
        for _ in range(20):
            costs.record_rewind(500, 250, seconds)
    assert not slow.favor_rewind(1000, 500)
    assert quick.favor_rewind(1000, 500)


def test_a_slow_hour_is_not_the_end_of_rewinding() -> None:
    costs = Costs()
    costs.record_recreate(0.1)
    costs.record_rewind(1000, 0, 100.0)
    tries = 0
    while not costs.favor_rewind(1000):
        tries += 1
    assert 1 < tries < 100
