"""Comparisons: words, errors, the standard error of an accuracy."""

import pytest

from espace_tf.records.comparison import Comparison
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan


def test_words():
    seen = Comparison(images=50, loss_increase=-0.01, agreement=1.0)
    assert str(seen) == "on 50 held-out images: loss -0.01, agreement 1.000"
    assert seen.accuracy_drop is None
    seen = Comparison(
        images=100, loss_increase=0.5, agreement=0.91, accuracy_before=0.9, accuracy_after=0.85
    )
    assert str(seen).endswith("agreement .910, accuracy .900 -> .850")
    assert seen.accuracy_drop == pytest.approx(0.05 + 0.03)  # 9 of 100 answers have changed


@pytest.mark.parametrize("fields", [{"images": 0}, {"agreement": 2}, {"loss_increase": "x"}])
def test_what_makes_no_sense_is_refused(fields):
    with pytest.raises((TypeError, ValueError), match=next(iter(fields))):
        Comparison(**{"images": 3, "loss_increase": 0.0, "agreement": 1.0, **fields})


def test_a_plan_keeps_it_in_its_file(tmp_path):
    seen = Comparison(images=7, loss_increase=0.25, agreement=0.5)
    plan = Plan(layers={"a": LayerPlan(rank=2)}, comparison=seen)
    assert str(seen) in str(repr(plan))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").comparison == seen
    with pytest.raises(TypeError, match="comparison must be a Comparison"):
        Plan(comparison={"images": 7})
