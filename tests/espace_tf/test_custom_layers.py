"""Layer classes of a user's own: kept, rebuilt from a config, copied as they are without one."""

import re

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


FORMS = {
    "get_config": {"complete": True},
    "named, plain arguments": {"complete": False},
    "no get_config, no name": {"complete": False, "named": False},
}


@LIBRARIES
@pytest.mark.parametrize("form", FORMS)
def test_what_is_inside_is_compressed_or_kept(library, form):
    model = network(library, **FORMS[form])
    plan = Plan.uniform(model, rank_ratio=1)
    small = apply(model, plan)
    if library is keras:  # read as a graph, see network/test_normal.py
        assert len(plan.layers) == 2 and not plan.skipped
    else:
        assert set(plan.layers) == {"conv"}
        (reason,) = plan.skipped.values()
        assert re.fullmatch(r"it is inside 'block\w*', a Block, which is left alone", reason)
    images = np.random.default_rng(SEED).random((2, 12, 12, 3), np.float32)
    expected, found = model.predict(images, verbose=0), small.predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not {id(v) for v in model.variables} & {id(v) for v in small.variables}
