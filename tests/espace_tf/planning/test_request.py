"""What is told of a plan that was measured."""

import warnings

import pytest

from espace_tf.config import EspaceConfig, EspaceWarning
from espace_tf.planning.planner import UnreachableSpeedWarning
from espace_tf.planning.request import warn_if_off
from espace_tf.records.comparison import Comparison
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan


def plan(measured, layers=2, agreement=0.99):
    return Plan(
        layers={f"conv{index}": LayerPlan(rank=4) for index in range(layers)},
        speedup=2.0,
        dense_ms=8.0,
        predicted_ms=4.0,
        measured_speedup=measured,
        comparison=Comparison(images=100, loss_increase=1 - agreement, agreement=agreement),
    )


@pytest.mark.parametrize(
    ("made", "kind", "words"),
    [
        (plan(1.8), UnreachableSpeedWarning, r"2 was asked for, 1\.80 was .* predicted 2\.00"),
        (plan(1.8, agreement=0.5), UnreachableSpeedWarning, "agreement .500"),
        (plan(2.5), EspaceWarning, r"2 was asked for, 2\.50 was measured .*more than was needed"),
        (plan(2.0, agreement=0.5), EspaceWarning, "many answers have changed"),
        (plan(2.5, agreement=0.5), EspaceWarning, "many answers have changed"),
    ],
)
def test_what_is_off_is_told(made, kind, words):
    with pytest.warns(kind, match=words) as told:
        warn_if_off(made, EspaceConfig())
    assert [each.category for each in told] == [kind]


@pytest.mark.parametrize("made", [plan(2.05), plan(1.97), plan(3.0, layers=1)])
def test_what_is_as_asked_or_could_not_change_less_is_not(made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_off(made, EspaceConfig())
