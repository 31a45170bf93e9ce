"""Calls of other kinds than layer(x): by keyword, and of sequences that carry a mask."""

import keras
import numpy as np
import pytest
import tf_keras

import espace_tf
from espace_tf.keras_layers import FusedGraph
from espace_tf.network import graph, recording
from espace_tf.rewriting.fuse import fuse

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
FORMS = pytest.mark.parametrize("options", [{}, {"fuse": False}, {"stock": True}], ids=str)
SEED = 3


def close(found, wanted):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5 * np.abs(wanted).max())


def by_keyword(library):
    library.utils.set_random_seed(SEED)
    layers, x = library.layers, library.Input((12, 12, 3))
    y = layers.Conv2D(16, 3, padding="same")(inputs=x)
    y = layers.ReLU()(inputs=layers.BatchNormalization()(training=False, inputs=y))
    y = layers.Dropout(0.4)(inputs=layers.Conv2D(16, 3)(inputs=y))
    return library.Model(x, layers.Dense(4)(inputs=layers.GlobalAveragePooling2D()(inputs=y)))


@LIBRARIES
@FORMS
def test_layers_may_be_called_by_keyword(library, options):
    model = by_keyword(library)
    small = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    x = np.random.default_rng(SEED).normal(size=(5, 12, 12, 3)).astype(np.float32)
    close(espace_tf.strip(small, **options)(x), small(x))
    close(espace_tf.strip(model, **options)(x), model(x))


@LIBRARIES
def test_recorded_calls_by_keyword_have_their_inputs(library):
    model = by_keyword(library)
    (norm,) = [path for path in graph.layers(model) if "batch_norm" in path]
    x = np.random.default_rng(SEED).normal(size=(2, 12, 12, 3)).astype(np.float32)
    with recording.record(model, [norm], lambda path, layer, values, own: own(0 * values)) as calls:
        found = model(x)
    assert calls[0].inputs.shape == (2, 12, 12, 16)
    assert np.abs(np.asarray(found) - np.asarray(model(x))).max() > 1e-3


def gated_pooling(mask_zero=True):
    words, maps = keras.Input((10,), dtype="int32"), keras.Input((10, 16, 1))
    embedded = keras.layers.Embedding(9, 16, mask_zero=mask_zero)(words)
    y = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(maps)
    y = keras.layers.Reshape((10, 16))(keras.layers.Conv2D(1, 3, padding="same")(y))
    y = keras.layers.ReLU()(keras.layers.Multiply()([embedded, y]))
    random = np.random.default_rng(SEED)
    x = [random.integers(1, 9, (3, 10)), random.normal(size=(3, 10, 16, 1)).astype(np.float32)]
    x[0][:, 3:] = 0
    return keras.Model([words, maps], keras.layers.GlobalAveragePooling1D()(y)), x


def gated_recurrence():
    sequence = keras.Input((10, 8))
    y = keras.layers.Dense(8, activation="relu")(keras.layers.Masking()(sequence))
    gate = keras.layers.Reshape((10, 8, 1))(sequence)
    gate = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(gate)
    gate = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(gate)
    gate = keras.layers.Reshape((10, 8))(gate)
    x = np.random.default_rng(SEED).normal(size=(5, 10, 8)).astype(np.float32)
    x[:, 4:] = 0
    output = keras.layers.LSTM(4)(keras.layers.Multiply()([y, gate]))
    return keras.Model(sequence, output), x


@FORMS
@pytest.mark.parametrize("network", [gated_pooling, gated_recurrence])
def test_masks_of_sequences_reach_who_heeds_them(network, options):
    keras.utils.set_random_seed(SEED)
    model, x = network()
    small = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5))
    close(espace_tf.strip(small, **options)(x), small(x))


def kinds_in_fused_graphs(model):
    stretches = [layer for layer in fuse(model).layers if isinstance(layer, FusedGraph)]
    return {type(layer).__name__ for stretch in stretches for layer in stretch.model.layers}


def test_what_carries_no_mask_is_fused_as_before():
    (masked, _), (plain, _) = gated_pooling(), gated_pooling(mask_zero=False)
    assert {"Conv2D", "Multiply", "ReLU"} <= kinds_in_fused_graphs(plain)
    assert "Conv2D" in kinds_in_fused_graphs(masked)
    assert not {"Multiply", "ReLU"} & kinds_in_fused_graphs(masked)
