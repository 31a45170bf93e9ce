"""The knapsack against trying every combination."""

import concurrent.futures
import itertools
import os

import numpy as np
import pytest

from espace_tf.numerics.knapsack import allocate, cheapest


def by_hand(costs, damages, budget):
    """Least total damage within the budget; None if nothing fits."""
    best = None
    for picked in itertools.product(*[range(len(values)) for values in costs]):
        cost = sum(values[index] for values, index in zip(costs, picked, strict=True))
        damage = sum(values[index] for values, index in zip(damages, picked, strict=True))
        if cost <= budget * (1 + 1e-12) and (best is None or damage < best):
            best = damage
    return best


def problem(seed: int):
    """Layers whose costs and damages span several orders of magnitude."""
    rng = np.random.default_rng(seed)
    costs, damages = [], []
    for _ in range(rng.integers(1, 6)):
        count = rng.integers(1, 6)
        costs.append(rng.exponential(size=count) * 10.0 ** rng.integers(-3, 2))
        damages.append(rng.exponential(size=count) * 10.0 ** rng.integers(-6, 3))
        damages[-1][0] = 0
    return costs, damages, rng.uniform(0.1, 1.1) * sum(values.max() for values in costs)


@pytest.mark.parametrize("block", range(4))
def test_equals_brute_force(block):
    for seed in range(block * 60, block * 60 + 60):
        costs, damages, budget = problem(seed)
        found, expected = allocate(costs, damages, budget), by_hand(costs, damages, budget)
        assert (found is None) == (expected is None), f"seed {seed}"
        if found is not None:
            cost = sum(values[index] for values, index in zip(costs, found, strict=True))
            damage = sum(values[index] for values, index in zip(damages, found, strict=True))
            assert cost <= budget * (1 + 1e-11), f"seed {seed}"
            assert damage == pytest.approx(expected, rel=1e-6, abs=1e-15), f"seed {seed}"


def test_a_budget_met_exactly_is_met():
    tenths = [[0.1, 0.3]] * 3
    assert allocate(tenths, [[1.0, 0.0]] * 3, budget=0.1 + 0.1 + 0.3).count(1) == 1
    assert allocate(tenths, [[1.0, 0.0]] * 3, budget=0.3) == [0, 0, 0]
    assert allocate(tenths, [[1.0, 0.0]] * 3, budget=0.9) == [1, 1, 1]


def test_nothing_fits():
    assert allocate([[2.0, 1.0]], [[0.0, 1.0]], budget=0.5) is None
    assert allocate([[2.0, 1.0]], [[0.0, 1.0]], budget=-3.0) is None
    assert allocate([], [], budget=1.0) == []


def test_a_network_of_fifty_layers_is_no_trouble():
    rng = np.random.default_rng(0)
    factors = [np.concatenate([[1.0], rng.uniform(0.1, 1.2, 40)]) for _ in range(50)]
    costs = [(rng.exponential() + 0.05) * each for each in factors]
    damages = [np.maximum(0, 1 - each) ** 2 * rng.uniform(0.5, 2) for each in factors]
    total = sum(values[0] for values in costs)
    lost = []
    for speedup in (1.25, 1.5, 2, 3, 5):
        found = allocate(costs, damages, total / speedup)
        used = sum(values[index] for values, index in zip(costs, found, strict=True))
        assert used <= total / speedup
        lost.append(sum(values[index] for values, index in zip(damages, found, strict=True)))
    assert lost == sorted(lost), "a higher speed cannot lose less"


def test_cheapest_prefers_less_damage_among_equals():
    assert cheapest([[3.0, 1.0, 1.0]], [[0.0, 2.0, 1.0]]) == [2]


def test_a_choice_among_very_many_equals_is_near_the_bound_and_quick():
    """Damage and cost on one line but for noise: exact search would go over all choices."""
    rng = np.random.default_rng(0)
    costs = [np.append(1.0, rng.uniform(0.05, 1.0, 20)) for _ in range(40)]
    damages = [np.append(0.0, 1 - cost[1:] + 1e-3 * rng.random(20)) for cost in costs]
    found = allocate(costs, damages, 20.0)
    lost = sum(values[index] for values, index in zip(damages, found, strict=True))
    # By duality no choice loses less than this, at any price of cost.
    bound = max(
        sum((d + price * c).min() for c, d in zip(costs, damages, strict=True)) - price * 20.0
        for price in np.linspace(0.9, 1.1, 201)
    )
    assert bound <= lost <= bound * (1 + 1e-3)


def test_threads_find_what_one_finds_and_leave_standard_output_alone():
    before = os.fstat(1)
    problems = [problem(seed) for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: allocate(*each), problems))
    assert found == [allocate(*each) for each in problems]
    assert os.path.samestat(os.fstat(1), before)
