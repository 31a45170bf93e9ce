"""The networks of keras.applications go through unharmed, thinner, with small inputs.

What a family is made of stays: its layers and how they are joined; each has an eighth of its
channels, at least eight (AS_WIDE: all), since the time goes to factors and to weights.
"""

import keras
import numpy as np
import pytest

import espace_tf.keras_layers  # noqa: F401  (registers the layers)
from espace_tf.network import costs, graph
from espace_tf.network.layer_rules import rule
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.rewriting.strip import strip

SIDES = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "Xception": 71,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "NASNetMobile": 32,
}
# Of the same family as one of these, made of the same blocks.
ALIKE = {
    "VGG19": "VGG16",
    "MobileNetV3Large": "MobileNetV3Small",
    "NASNetLarge": "NASNetMobile",
    **{f"ResNet{depth}": "ResNet50" for depth in (101, 152)},
    **{f"ResNet{depth}V2": "ResNet50V2" for depth in (101, 152)},
    **{f"DenseNet{depth}": "DenseNet121" for depth in (169, 201)},
    **{f"ConvNeXt{size}": "ConvNeXtTiny" for size in ("Small", "Base", "Large", "XLarge")},
    **{f"EfficientNetB{size}": "EfficientNetB0" for size in range(1, 8)},
    **{f"EfficientNetV2{size}": "EfficientNetV2B0" for size in ("B1", "B2", "B3", "S", "M", "L")},
}
NARROWER = 8
AS_WIDE = ("ConvNeXtTiny", "NASNetMobile")  # whose blocks keep only their own proportions


def thin(channels: int) -> int:
    return max(8, channels // NARROWER) if channels > 8 else channels


def thinner(layer: keras.Layer) -> keras.Layer:
    """A layer like another with fewer channels; what a Reshape makes into channels, too."""
    config = layer.get_config()
    for name in {"filters", "units", "projection_dim"} & set(config):
        config[name] = thin(config[name])
    if "target_shape" in config:
        config["target_shape"] = (*config["target_shape"][:-1], thin(config["target_shape"][-1]))
    return type(layer).from_config(config)


def build(name: str) -> tuple[keras.Model, np.ndarray]:
    """Random weights, and batch norms with statistics that are not those of an untrained one."""
    keras.utils.set_random_seed(0)
    side = SIDES[name]
    network = getattr(keras.applications, name)
    model = network(weights=None, include_top=False, pooling="avg", input_shape=(side, side, 3))
    if name not in AS_WIDE:
        wide, model = model, keras.models.clone_model(model, clone_function=thinner)
        assert len(model.layers) == len(wide.layers)
        assert model.count_params() < wide.count_params() / 4
    random = np.random.default_rng(0)
    for layer in graph.layers(model).values():
        if rule(layer).kind == "batch_norm":
            layer.set_weights([random.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])
    return model, random.normal(size=(2, side, side, 3)).astype(np.float32)


def distance(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_no_family_is_left_out():
    networks = {name for name in dir(keras.applications) if name[0].isupper()}
    assert networks == {*SIDES, *ALIKE}
    assert set(ALIKE.values()) <= set(SIDES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIDES)
def test_network(name, tmp_path):
    model, x = build(name)
    wanted = model(x).numpy()
    full = apply(model, Plan.uniform(model, rank_ratio=1.0, keep=1.0))
    assert full.espace_plan.layers
    assert distance(full(x).numpy(), wanted) < 1e-4
    assert distance(strip(model)(x).numpy(), wanted) < 1e-4
    assert np.array_equal(model(x), wanted)

    half = apply(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    fused = strip(half)
    assert any(rule(layer).kind == "fused" for layer in graph.layers(fused).values())
    assert distance(fused(x).numpy(), half(x).numpy()) < 1e-4
    assert costs.macs(fused) == costs.macs(half)
    # Random networks have enormous gradients: without clipping one step leads to NaN. Tracing the
    # step would take longer than all the rest.
    half.compile(keras.optimizers.SGD(1e-3, global_clipnorm=1.0), "mse", run_eagerly=True)
    history = half.fit(x, np.zeros_like(wanted), verbose=0)
    assert np.isfinite(history.history["loss"][0])
    half.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    assert np.isfinite(half(x)).all()
    assert np.array_equal(again(x), half(x))
