"""What a measured plan may lose, for the speed that its changes bring."""

import math

import pytest

from espace_tf.planning import worth
from espace_tf.planning.planner import DEAREST
from espace_tf.records.comparison import Comparison
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan


def plan(loss, *, measured=2.0, asked=2.0, before=3.0, after=1.0, dense=8.0, rest=1.0):
    """One layer changed from `before` to `after` ms beside `rest`; fused graphs bring the rest."""
    return Plan(
        layers={"conv": LayerPlan(rank=4)},
        speedup=asked,
        dense_ms=dense,
        predicted_ms=after + rest,
        measured_speedup=measured,
        comparison=Comparison(images=10, loss_increase=loss, agreement=0.9),
        times={"conv": (before, after)},
    )


@pytest.mark.parametrize("dense", [4.0, 8.0, 80.0])
def test_what_fused_graphs_bring_is_not_paid_for(dense):
    # Whatever the dense network takes, the changes bring 4 ms to 2.
    bound = DEAREST * math.log(2)
    assert not worth.is_too_dear(plan(0.99 * bound, dense=dense, measured=dense / 2))
    assert worth.is_too_dear(plan(1.01 * bound, dense=dense, measured=dense / 2))


def test_without_times_all_of_the_speed_is_taken_for_bought():
    made = Plan(
        layers={"conv": LayerPlan(rank=4)},
        measured_speedup=3.0,
        comparison=Comparison(images=10, loss_increase=0.99 * DEAREST * math.log(3), agreement=1.0),
    )
    assert not worth.is_too_dear(made)


def test_a_plan_that_predicted_the_speed_was_not_cut_short():
    assert not worth.is_short(plan(0.0, measured=1.5, dense=4.0), 0.07)
    short = plan(0.0, measured=1.5, asked=3.0, dense=4.0)
    assert worth.is_short(short, 0.07) and not worth.is_short(short, 0.6)


def test_nearer_is_better_unless_it_is_too_dear():
    near, far = plan(0.1, measured=1.9), plan(0.1, measured=1.5)
    assert worth.is_better(near, far) and not worth.is_better(far, near)
    dear = plan(9.0, measured=1.9)
    assert worth.is_better(far, dear) and not worth.is_better(dear, far)
