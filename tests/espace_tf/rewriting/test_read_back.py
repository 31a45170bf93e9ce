"""A loaded model tells the plan that it was made with: applied again, it gives the same network."""

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
from espace_tf.reports.html import report
from espace_tf.rewriting.apply import apply
from espace_tf.rewriting.read_back import plan_of
from espace_tf.rewriting.strip import strip

SEED = 6


def network(library):
    library.utils.set_random_seed(SEED)
    layers, x = library.layers, library.Input((12, 12, 3))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, activation="relu", name="a")(x)
    y = layers.Conv2D(8, (3, 5), padding="same", groups=2, name="b", activation="relu")(y)
    y = layers.Conv2D(6, 1, name="point")(y)
    y = layers.Conv2D(4, 3, name="left")(y)
    return library.Model(x, layers.GlobalAveragePooling2D()(y))


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_saved_and_loaded_model_tells_its_plan(library, tmp_path):
    model, kept = network(library), np.arange(0, 144, 3)
    layers = {
        "a": LayerPlan(rank=4, positions=kept, output_size=(12, 12), family="grid"),
        "b": LayerPlan(rank=3, order="horizontal"),
        "point": LayerPlan(positions=kept),
    }
    small = apply(model, Plan(layers=layers, skipped={"left": "why"}))
    assert plan_of(small) is small.espace_plan is plan_of(small.espace_plan)
    small.save(tmp_path / "small.keras")
    loaded = library.models.load_model(tmp_path / "small.keras")
    found = plan_of(loaded)
    assert list(found.layers) == ["a", "b", "point"] and list(found.skipped) == ["left"]
    for path, layer in layers.items():
        twin = found.layers[path]
        assert (twin.rank, twin.order) == (layer.rank, layer.order)
        np.testing.assert_array_equal(twin.positions, layer.positions)
        assert twin.output_size == (12, 12)
    x = np.random.default_rng(SEED).random((2, 12, 12, 3), np.float32)
    np.testing.assert_allclose(apply(model, found)(x), loaded(x), rtol=1e-5, atol=1e-6)
    page = report(loaded, tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("3 of 4 convolutions", "3, horizontal first", "33 % (48 of 144)", "as it was"):
        assert words in page, words
    if library is keras:
        small.espace_plan = None
        assert set(plan_of(strip(small)).layers) == {"a", "b", "point"}, "in fused graphs too"


def test_what_has_no_plan_is_refused():
    for other in (network(keras), keras.layers.Dense(3), "model.keras", None):
        with pytest.raises(TypeError, match="must be a Plan, or a model that compress"):
            plan_of(other)
