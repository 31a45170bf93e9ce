"""LayerPlan: valid once built, and refused in words when it is edited into nonsense."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from espace_tf.numerics.factors import Factors, plain_factors
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply

SEED = 12


def factors(order="vertical", shape=(3, 3, 4, 8), rank=2) -> Factors:
    return plain_factors(np.random.default_rng(SEED).normal(size=shape), rank, order)


def test_layer_plans_are_valid_once_built():
    np.testing.assert_array_equal(LayerPlan(positions=[3, 1, 1]).positions, [1, 3])
    assert LayerPlan().keep == 1.0
    assert LayerPlan(positions=[1]).keep is None
    assert LayerPlan(output_size=[np.int64(2), 3]).output_size == (2, 3)
    assert type(LayerPlan(damage=np.float32(0.5)).damage) is float


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rank": 0}, "rank must be at least 1. Received: 0"),
        ({"rank": 2.5}, "rank must be an integer. Received: 2.5"),
        ({"order": "first"}, "order must be one of vertical, horizontal. Received: 'first'"),
        ({"order": None}, "order must be one of"),
        ({"positions": []}, "positions is empty"),
        ({"positions": [0.5]}, "positions must be integers"),
        ({"positions": [6], "output_size": (2, 3)}, r"positions must lie in \[0, 6\)"),
        ({"output_size": (2,)}, "output_size must be two integers"),
        ({"output_size": "ab"}, "output_size must be two integers"),
        ({"output_size": (0, 3)}, "output_size must be at least 1. Received: 0"),
        ({"family": 3}, "family must be a text. Received: 3"),
        ({"note": ["a"]}, "note must be a text"),
        ({"damage": "much"}, "damage must be a finite number. Received: 'much'"),
        ({"damage": float("nan")}, "damage must be a finite number. Received: nan"),
        ({"factors": [1, 2], "rank": 2}, "factors must be Factors or None"),
        ({"factors": factors()}, "without a rank"),
        (
            {"factors": Factors(np.ones((3, 1, 4)), np.ones((1, 3, 2, 8))), "rank": 2},
            r"factors must be \[., ., channels.*Received: shapes \(3, 1, 4\)",
        ),
        (
            {"factors": dataclasses.replace(factors(), bias=np.full(8, np.nan)), "rank": 2},
            "factors must be finite. Received: NaN or infinity in 'bias'",
        ),
    ],
)
def test_fields_that_make_no_sense(wrong, words):
    with pytest.raises((TypeError, ValueError), match=words):
        LayerPlan(**wrong)


@pytest.mark.parametrize("order", ["vertical", "horizontal"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 3, 4, 8), (5, 1, 4, 8)])
def test_another_rank_or_order_than_the_factors_is_refused(order, shape):
    made = LayerPlan(rank=2, order=order, factors=factors(order, shape))
    first, second = made.factors.first.shape, made.factors.second.shape
    other = {"vertical": "horizontal", "horizontal": "vertical"}[order]
    for change in ({"rank": 1}, {"rank": 3}, {"order": other}):
        with pytest.raises(ValueError, match="do not go with the factors") as caught:
            dataclasses.replace(made, **change)
        for words in (f"{first} and {second}", f"rank 2, {order} first", "set factors to None"):
            assert words in str(caught.value)
        assert dataclasses.replace(made, factors=None, **change).factors is None


def test_a_point_kernel_has_both_orders():
    made = LayerPlan(rank=2, factors=factors(shape=(1, 1, 4, 8)))
    assert dataclasses.replace(made, order="horizontal").order == "horizontal"


@pytest.mark.parametrize("change", [{"rank": 1}, {"order": "horizontal"}])
def test_an_edited_file_is_refused_with_what_to_do_and_that_helps(tmp_path, change):
    inputs = keras.Input((10, 10, 4))
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3, name="conv")(inputs))
    kernel = model.get_layer("conv").get_weights()[0]
    path = tmp_path / "plan.json"
    Plan(layers={"conv": LayerPlan(rank=2, factors=plain_factors(kernel, 2))}).save(path)
    document = json.loads(path.read_text())
    document["layers"]["conv"] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"layer 'conv': rank .*\"factors\": \[\]\)"):
        Plan.load(path)
    document["layers"]["conv"]["factors"] = []
    path.write_text(json.dumps(document))
    small = apply(model, Plan.load(path))
    layer = small.get_layer("conv")
    assert {"rank": layer.rank, "order": layer.order} == {"rank": 2, "order": "vertical", **change}
    best = plain_factors(kernel, layer.rank, layer.order)
    np.testing.assert_allclose(layer.get_weights()[0], best.first, atol=1e-6)
