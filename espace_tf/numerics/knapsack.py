"""Which option for every layer: the multiple-choice knapsack (NumPy, SciPy)."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

# How far above the least total damage a choice may lie at most, relative: the end of a proof can
# take hours.
_GAP = 1e-7
_SECONDS = 60


def allocate(
    costs: Sequence[np.ndarray], damages: Sequence[np.ndarray], budget: float
) -> list[int] | None:
    """One option per layer with the least total damage at a total cost of at most `budget`.

    Exact (up to a relative 1e-7) by branch and bound: minimise sum d_ij x_ij over binary x with
    sum_j x_ij = 1 for every layer i and sum c_ij x_ij <= budget. Options that another one of the
    same layer beats in both cost and damage are left out first.

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
    order = np.lexsort((damages, costs))
    best = np.minimum.accumulate(damages[order])
    first = np.concatenate([[True], damages[order][1:] < best[:-1]])
    return order[first]


def _solve(costs: Sequence[np.ndarray], damages: Sequence[np.ndarray], budget: float) -> list[int]:
    """The choice among undominated options (cheapest first in each layer) within the budget.

    Costs are taken relative to each layer's cheapest option and damages to its least one, so that
    small differences between large sums are not lost; both are scaled by what is at stake, because
    the solver's tolerances (1e-6) are absolute. It may exceed a bound by its tolerance: then the
    bound is drawn in by what it exceeded.
    """
    extra_costs = [values - values[0] for values in costs]
    extra_damages = [values - values[-1] for values in damages]
    room = budget - sum(values[0] for values in costs)
    good = _relaxed(extra_costs, extra_damages, room)
    worst = sum(values[choice] for values, choice in zip(extra_damages, good, strict=True))
    if room <= 0 or worst <= 0:
        return good
    bound = 1.0
    for _ in range(8):
        found = _branch_and_bound(
            [values / room for values in extra_costs],
            [values / worst for values in extra_damages],
            bound,
        )
        if found is None:
            return good
        used = sum(values[choice] for values, choice in zip(extra_costs, found, strict=True))
        if used <= room:
            return found
        bound -= 2 * (used / room - 1)
    return good


def _relaxed(
    costs: Sequence[np.ndarray], damages: Sequence[np.ndarray], budget: float
) -> list[int]:
    """A good choice within the budget: least damage + price * cost at the lowest price that fits.

    The choice of the cheapest option everywhere must fit.
    """

    def choose(price: float) -> list[int]:
        return [
            int((damage + price * cost).argmin())
            for cost, damage in zip(costs, damages, strict=True)
        ]

    def fits(choice: list[int]) -> bool:
        return sum(values[index] for values, index in zip(costs, choice, strict=True)) <= budget

    best, low, high = [0] * len(costs), 0.0, 1.0
    if fits(choose(low)):
        return choose(low)
    while not fits(choose(high)) and high < 1e30:
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(choose(middle)) else (middle, high)
    return choose(high) if fits(choose(high)) else best


def _branch_and_bound(
    costs: Sequence[np.ndarray], damages: Sequence[np.ndarray], budget: float
) -> list[int] | None:
    """The best choice of total damage at most about 1, to the solver's tolerance; None: none."""
    from scipy import optimize, sparse

    cost, damage = np.concatenate(costs), np.concatenate(damages)
    starts = np.cumsum([0, *map(len, costs)])
    owner = np.repeat(np.arange(len(costs)), np.diff(starts))
    one_each = sparse.csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    possible = (cost <= budget) & (damage <= 1 + 1e-6)
    constraints = [
        optimize.LinearConstraint(one_each, 1, 1),
        optimize.LinearConstraint(np.where(possible, cost, 0)[None], -np.inf, budget),
    ]
    with _prints_to_stderr():
        result = optimize.milp(
            np.where(possible, damage, 0),
            constraints=constraints,
            integrality=np.ones(len(owner)),
            bounds=optimize.Bounds(0, possible.astype(float)),
            options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
        )
    if result.x is None:
        return None
    return [int(result.x[a:b].argmax()) for a, b in zip(starts[:-1], starts[1:], strict=True)]


@contextlib.contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """Turns the process's standard output into its standard error for a while.

    The solver (HiGHS in SciPy 1.17) now and then prints a debugging line past Python, where it
    would end up among the results that a command prints.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
