"""When making a new clone costs less than rewinding one."""

from __future__ import annotations

from clonepool.postgres.rewind.cost import Economy

MANY, FEW = 100_000, 10


def test_whatever_is_known_too_little_of_is_rewound() -> None:
    assert Economy().is_worth_it(MANY)


def test_little_is_always_rewound() -> None:
    economy = Economy()
    economy.recreated(0.000_001)
    assert economy.is_worth_it(FEW)


def test_what_takes_longer_than_a_new_clone_is_not_rewound() -> None:
    economy = Economy()
    economy.recreated(0.1)
    economy.rewound(1000, 0, 1.0)
    assert not economy.is_worth_it(10_000)
    assert economy.is_worth_it(50)


def test_the_limit_follows_what_both_take() -> None:
    slow, quick = Economy(), Economy()
    for economy, seconds in ((slow, 0.5), (quick, 0.005)):
        economy.recreated(0.2)
        for _ in range(20):
            economy.rewound(500, 250, seconds)
    assert not slow.is_worth_it(1000, 500)
    assert quick.is_worth_it(1000, 500)


def test_a_slow_hour_is_not_the_end_of_rewinding() -> None:
    economy = Economy()
    economy.recreated(0.1)
    economy.rewound(1000, 0, 100.0)
    tries = 0
    while not economy.is_worth_it(1000):
        tries += 1
    assert 1 < tries < 100
