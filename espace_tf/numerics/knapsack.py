"""Which option for every layer: the multiple-choice knapsack (NumPy)."""

from collections.abc import Sequence

import numpy as np

# How far above the least total damage a choice may lie at most, relative.
_GAP = 1e-7
# Partial choices kept after each layer: of more, those nearest to the bound at every cost.
_MOST_STATES = 5_000


def allocate(
    costs: Sequence[np.ndarray], damages: Sequence[np.ndarray], budget: float
) -> list[int] | None:
    """One option per layer with the least total damage at a total cost of at most `budget`.

    Minimises sum d_ij x_ij over binary x with sum_j x_ij = 1 for every layer i and
    sum c_ij x_ij <= budget, exact up to a relative 1e-7 but for problems of very many nearly equal
    choices. Options that another one of the same layer beats in both cost and damage are left out
    first. Lagrange's relaxation gives a good choice and a bound; partial choices that cannot beat
    the one because of the other are dropped, and dynamic programming goes over the rest (Pisinger
    1995, "A minimal algorithm for the multiple-choice knapsack problem", European Journal of
    Operational Research 83).

    Args:
        costs, damages: per layer, one number per option; at least one option each.
        budget: in the unit of costs.

    Returns:
        Per layer the index of its option; None if even the cheapest options exceed the budget.

    Example:
        >>> allocate([[4.0, 1.0], [4.0, 2.0]], [[0.0, 3.0], [0.0, 1.0]], budget=6.0)
        [0, 1]
    """
    costs = [np.asarray(values, float) for values in costs]
    damages = [np.asarray(values, float) for values in damages]
    if not costs:
        return []
    slack = 1e-12 * abs(budget)  # a sum equal to the budget but for rounding fits
    if sum(values.min() for values in costs) > budget + slack:
        return None
    kept = [_undominated(*pair) for pair in zip(costs, damages, strict=True)]
    useful_costs = [values[index] for values, index in zip(costs, kept, strict=True)]
    useful_damages = [values[index] for values, index in zip(damages, kept, strict=True)]
    chosen = _solve(useful_costs, useful_damages, budget + slack)
    return [int(index[choice]) for index, choice in zip(kept, chosen, strict=True)]


def cheapest(costs: Sequence[np.ndarray], damages: Sequence[np.ndarray]) -> list[int]:
    """Per layer the option of least cost, and of least damage among equals."""
    return [int(np.lexsort((damage, cost))[0]) for cost, damage in zip(costs, damages, strict=True)]


def _undominated(costs: np.ndarray, damages: np.ndarray) -> np.ndarray:
    """Indices of the options with less damage than every cheaper one, cheapest first."""
    if not len(costs):
        return np.zeros(0, int)
    ranking = np.lexsort((damages, costs))
    best = np.minimum.accumulate(damages[ranking])
    first = np.concatenate([[True], damages[ranking][1:] < best[:-1]])
    return ranking[first]


def _solve(costs: Sequence[np.ndarray], damages: Sequence[np.ndarray], budget: float) -> list[int]:
    """The choice among undominated options (cheapest first in each layer) within the budget.

    Costs are taken relative to each layer's cheapest option and damages to its least one, so that
    small differences between large sums are not lost.
    """
    room = budget - sum(values[0] for values in costs)
    costs = [values - values[0] for values in costs]
    damages = [values - values[-1] for values in damages]
    return _improved(costs, damages, room, *_relaxed(costs, damages, room))


def _relaxed(
    costs: Sequence[np.ndarray], damages: Sequence[np.ndarray], budget: float
) -> tuple[list[int], float]:
    """A good choice within the budget, and the price of cost at which it is the best one.

    It has the least damage + price * cost at the lowest price that fits. The choice of the cheapest
    option everywhere must fit.
    """

    def choose(price: float) -> list[int]:
        return [
            int((damage + price * cost).argmin())
            for cost, damage in zip(costs, damages, strict=True)
        ]

    def fits(choice: list[int]) -> bool:
        return _total(costs, choice) <= budget

    low, high = 0.0, 1.0
    if fits(choose(low)):
        return choose(low), low
    while not fits(choose(high)) and high < 1e30:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(choose(middle)) else (middle, high)
    return (choose(high) if fits(choose(high)) else [0] * len(costs)), high


def _improved(
    costs: Sequence[np.ndarray],
    damages: Sequence[np.ndarray],
    budget: float,
    good: list[int],
    price: float,
) -> list[int]:
    """The best choice, of which `good` is one; by dynamic programming over the layers.

    What a choice loses against the relaxation's bound, sum_i min_j (d_ij + price c_ij) - price
    budget, is the sum over the layers of each option's excess over that minimum, and the price of
    what is left of the budget. A choice better than `good` loses less than `good` does.
    """
    prices = [d + price * c for c, d in zip(costs, damages, strict=True)]
    excesses = [values - values.min() for values in prices]
    best = _total(damages, good)
    window = best * (1 - _GAP) - sum(values.min() for values in prices) + price * budget
    useful = [np.flatnonzero(values <= window) for values in excesses]
    least = [values[index].min(initial=np.inf) for values, index in zip(costs, useful, strict=True)]
    states, trail = np.zeros((3, 1)), []  # cost, damage, excess
    for layer, index in enumerate(useful):
        steps = np.stack([each[layer][index] for each in (costs, damages, excesses)])
        sums = (states[:, :, None] + steps[:, None]).reshape(3, -1)
        alive = (sums[0] + sum(least[layer + 1 :]) <= budget) & (sums[2] <= window)
        kept = np.flatnonzero(alive)
        kept = kept[_undominated(*sums[:2, kept])]
        if len(kept) > _MOST_STATES:
            share = np.arange(len(kept)) * _MOST_STATES // len(kept)
            nearest = kept[np.lexsort((sums[2, kept], share))]
            kept = nearest[np.flatnonzero(np.diff(share, prepend=-1))]
        states = sums[:, kept]
        trail.append((kept // max(len(index), 1), index[kept % max(len(index), 1)]))
    if not states.size or states[1].min() >= best:
        return good
    state, found = int(states[1].argmin()), []
    for parents, options in reversed(trail):
        found.append(int(options[state]))
        state = parents[state]
    return found[::-1]


def _total(values: Sequence[np.ndarray], choice: list[int]) -> float:
    return sum(each[index] for each, index in zip(values, choice, strict=True))
