"""What strip folds, and what it must not: layers whose computing is not known."""

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.network import graph
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.rewriting.strip import strip

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
SEED = 5


def randomized(model):
    random = np.random.default_rng(SEED)
    for layer in graph.layers(model).values():
        layer.set_weights([random.uniform(0.4, 1.6, w.shape) for w in layer.get_weights()])
    return model


def same(model, other, shape=(5, 5, 3)):
    x = np.random.default_rng(SEED).normal(size=(2, *shape)).astype("float32")
    wanted, found = np.asarray(model(x)), np.asarray(other(x))
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def kinds(model):
    return {path: type(layer).__name__ for path, layer in graph.layers(model).items()}


FOLDED = {
    "Conv2D": ((6, 7, 3), [4, 3]),
    "DepthwiseConv2D": ((6, 7, 3), [3]),
    "SeparableConv2D": ((6, 7, 3), [4, 3]),
    "Conv2DTranspose": ((6, 7, 3), [4, 3]),
    "Conv1D": ((9, 3), [4, 3]),
    "DepthwiseConv1D": ((9, 3), [3]),
    "SeparableConv1D": ((9, 3), [4, 3]),
    "Conv1DTranspose": ((9, 3), [4, 3]),
    "Conv3D": ((4, 5, 4, 2), [3, 2]),
    "Conv3DTranspose": ((4, 5, 4, 2), [3, 2]),
    "Dense": ((5, 3), [4]),
}


@LIBRARIES
@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_batch_norm_is_folded_into_every_kind(library, name, use_bias):
    shape, arguments = FOLDED[name]
    x = library.Input(shape)
    layer = getattr(library.layers, name)(*arguments, use_bias=use_bias, name="layer")
    model = library.Model(x, library.layers.BatchNormalization(name="norm")(layer(x)))
    stripped = strip(randomized(model))
    assert kinds(stripped) == {"layer": name, "norm": "Identity"}
    same(model, stripped, shape)


def test_a_batch_norm_over_another_axis_stays():
    x = keras.Input((4, 4, 4))
    for options, axis, folds in (
        ({}, -1, True),
        ({}, 1, False),
        ({"data_format": "channels_first"}, 1, True),
        ({"data_format": "channels_first"}, -1, False),
    ):
        y = keras.layers.Conv2D(4, 3, padding="same", name="conv", **options)(x)
        model = keras.Model(x, keras.layers.BatchNormalization(axis=axis, name="norm")(y))
        stripped = strip(randomized(model))
        assert (kinds(stripped)["norm"] == "Identity") is folds
        if not options:  # TensorFlow has channels_first on GPUs only
            same(model, stripped, (4, 4, 4))


@LIBRARIES
def test_classes_of_a_user_are_not_taken_for_those_of_keras(library):
    class Scaled(library.layers.BatchNormalization):
        def call(self, inputs, **options):
            return 2 * super().call(inputs, **options)

    class Conv2D(library.layers.Layer):
        def __init__(self, filters, use_bias=False, activation="linear", **options):
            super().__init__(**options)
            self.filters, self.use_bias = filters, use_bias
            self.activation = library.activations.get(activation)

        def build(self, shape):
            self.kernel = self.add_weight(name="k", shape=(shape[-1], self.filters))
            super().build(shape)

        def call(self, inputs):
            return (inputs @ self.kernel) ** 2

        def get_config(self):
            own = {"filters": self.filters, "use_bias": self.use_bias, "activation": "linear"}
            return {**super().get_config(), **own}

    class Dropout(library.layers.Dropout):
        def call(self, inputs, training=None):
            return inputs + 1

    x = library.Input((5, 5, 3))
    y = library.layers.Conv2D(4, 3, name="plain")(x)
    y = Conv2D(4, name="own")(Dropout(0.5, name="drop")(Scaled(name="scaled")(y)))
    model = randomized(library.Model(x, library.layers.BatchNormalization(name="norm")(y)))
    small = apply(model, Plan.uniform(model, rank_ratio=1.0, keep=1.0))
    for each in (model, small):
        stripped = strip(each)
        assert {"own": "Conv2D", "norm": "BatchNormalization"}.items() <= kinds(stripped).items()
        same(model, stripped)


@pytest.mark.parametrize("change", ["lora", "int8"])
def test_quantized_layers_and_such_with_lora_are_left_alone(change):
    x = keras.Input((5, 5, 3))
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, name="conv")(x))
    y = keras.layers.Flatten()(y)
    head = keras.layers.Dense(4, name="head")
    model = randomized(keras.Model(x, keras.layers.BatchNormalization(name="norm")(head(y))))
    if change == "lora":
        for layer in (head, model.get_layer("conv")):
            layer.enable_lora(2)
        randomized(model)
    else:
        head.quantize("int8")
    stripped = strip(model)
    assert kinds(stripped)["norm"] == "BatchNormalization"
    same(model, stripped)


@pytest.mark.parametrize("name", ["fuse", "stock"])
def test_flags_are_true_or_false(name):
    with pytest.raises(ValueError, match=rf"{name} must be one of True, False. Received: 'yes'"):
        strip(keras.Sequential([keras.Input((4, 4, 1))]), **{name: "yes"})
