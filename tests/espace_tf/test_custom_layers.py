"""Layer classes of a user's own: kept, rebuilt from a complete config, refused in words without."""

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply

SEED = 9
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def block_class(library, complete: bool):
    class Block(library.layers.Layer):
        def __init__(self, filters, **options):
            super().__init__(**options)
            self.conv = library.layers.Conv2D(filters, 3, padding="same")

        def build(self, shape):
            self.conv.build(shape)
            super().build(shape)

        def call(self, inputs):
            return self.conv(inputs)

    if complete:

        def get_config(self):
            config = library.layers.Layer.get_config(self)
            return {**config, "filters": self.conv.filters}

        Block.get_config = get_config
    return Block


def network(library, complete: bool, named: bool = True):
    library.utils.set_random_seed(SEED)
    inputs = library.Input((12, 12, 3))
    x = library.layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    named = {"name": "block"} if named else {}
    return library.Model(inputs, block_class(library, complete)(4, **named)(x))


@LIBRARIES
@pytest.mark.parametrize("complete", [True, False], ids=["get_config", "named, plain arguments"])
def test_a_complete_config_is_enough_and_what_is_inside_is_left_alone(library, complete):
    model = network(library, complete)
    plan = Plan.uniform(model)
    small = apply(model, plan)
    assert set(plan.layers) == {"conv"}
    assert [reason for path, reason in plan.skipped.items() if path.startswith("block/")] == [
        "it is inside 'block', a Block, which is left alone"
    ]
    images = np.random.default_rng(SEED).random((2, 12, 12, 3), np.float32)
    expected, found = model.predict(images, verbose=0), small.predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@LIBRARIES
def test_without_one_the_layer_is_named(library):
    model = network(library, complete=False, named=False)
    plan = Plan.uniform(model)
    with pytest.raises(ValueError, match=r"'block\w*' \(Block\) cannot be rebuilt.*get_config"):
        apply(model, plan)
