"""A fleet under one limit: no idle clone blocks a waiter, shares are fair, all are answered."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clonepool.core.budget import HANDOVER_SECONDS
from support.fleet_simulation import Client, FleetSimulation, Pace, limits_of

pytestmark = pytest.mark.long


def named(number: int) -> list[str]:
    return [f"t{n}" for n in range(number)]


def crowd(templates: list[str], each: int, **more: float) -> list[Client]:
    return [Client((template,), **more) for template in templates for _ in range(each)]


def spread(world: FleetSimulation, templates: list[str]) -> float:
    """Return how many times as many leases the luckiest template had as the unluckiest."""
    leases = [world.granted[template] for template in templates]
    return max(leases) / max(1, min(leases))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rewind", [0.003, 0.2])
def test_templates_that_want_the_same_get_the_same(seed: int, rewind: float) -> None:
    templates = named(40)
    world = FleetSimulation(limits_of(templates), 30, Random(seed), Pace(rewind=rewind))
    world.come(crowd(templates, 2))
    world.run(until=15.0)
    assert spread(world, templates) <= 2
    assert world.wasted == 0
    assert max(world.longest.values()) <= 1.0 + 10 * HANDOVER_SECONDS


def test_a_crowd_on_one_template_does_not_keep_others_waiting_longer_than_itself() -> None:
    templates = named(20)
    world = FleetSimulation(limits_of(templates, max_clones=100), 10, Random(1))
    world.come([*crowd(templates[:1], 60), *crowd(templates[1:], 1, hold=0.005)])
    world.run(until=40.0)
    waits = [world.longest[template] for template in templates]
    assert max(waits[1:]) <= 2 * waits[0] + HANDOVER_SECONDS
    assert spread(world, templates[1:]) <= 2
    assert min(world.granted[template] for template in templates[1:]) > 10


def test_a_client_that_takes_templates_in_turn_never_waits_for_an_idle_clone() -> None:
    templates = named(6)
    world = FleetSimulation(limits_of(templates), 4, Random(1))
    world.come([Client(tuple(templates), hold=0.01, timeout=2.0)])
    world.run(until=30.0)
    assert not world.refused
    assert world.wasted == 0
    assert max(world.longest.values()) < 1.0
    assert spread(world, templates) <= 1.1


def test_hundreds_of_templates_and_thousands_of_requests() -> None:
    chance = Random(1)
    templates = named(300)
    limits = {
        name: limits_of([name], min_ready=chance.choice([0, 0, 0, 1, 2]))[name]
        for name in templates
    }
    world = FleetSimulation(
        limits, 120, chance, Pace(create=0.01, drop=0.004, build=0.5, rewound=0.8)
    )
    clients = [
        Client((chance.choice(templates),), hold=chance.choice([0.005, 0.02, 0.2]), gap=0.05)
        for _ in range(400)
    ]
    world.come(clients)
    world.run(until=5.0)
    assert sum(world.granted.values()) >= 1000
    assert world.late == 0
    assert world.wasted == 0
    assert max(*world.longest.values(), world.unserved()) < 6.0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    templates=st.integers(1, 12),
    places=st.integers(1, 12),
    clients=st.integers(1, 24),
    own=st.integers(1, 6),
    timeout=st.sampled_from([0.0, 0.1, 1.0, 60.0]),
)
def test_every_acquire_is_answered_in_time_and_no_place_is_wasted(
    seed: int, templates: int, places: int, clients: int, own: int, timeout: float
) -> None:
    chance, names = Random(seed), named(templates)
    limits = limits_of(names, min_ready=chance.randint(0, min(2, own)), max_clones=own)
    rewound, build = chance.choice([0.0, 0.5, 1.0]), chance.choice([0.0, 0.5])
    world = FleetSimulation(limits, places, chance, Pace(rewound=rewound, build=build))
    world.come(
        Client(tuple(chance.sample(names, chance.randint(1, templates))), gap=0.02, timeout=timeout)
        for _ in range(clients)
    )
    world.run(until=2.0)
    assert world.late == 0
    assert world.wasted == 0
    assert world.granted or timeout == 0.0 or build
    assert world.fleet.budget.used <= places
    assert world.unserved() <= timeout + 1e-6
