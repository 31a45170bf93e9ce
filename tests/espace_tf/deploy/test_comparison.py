"""Sizes that are tried, batches, differences, and how large files would be."""

import keras
import numpy as np
import pytest
from deploy_networks import SEED, masked_network

from espace_tf.deploy import comparison
from espace_tf.deploy.comparison import check_batches, noise

LAYERS = keras.layers


def without_padding():
    """Two levels whose halves meet where the height is 4 k + 1."""
    inputs = keras.Input((None, None, 1))
    x = LAYERS.Conv2D(2, 6)(inputs)
    deep = LAYERS.Conv2D(2, 3)(LAYERS.MaxPooling2D(4)(x))
    meets = LAYERS.Concatenate()([LAYERS.Cropping2D(4)(x), LAYERS.UpSampling2D(4)(deep)])
    return keras.Model(inputs, meets)


def nowhere():
    inputs = keras.Input((None, None, 1))
    return keras.Model(inputs, LAYERS.Add()([LAYERS.Conv2D(1, 3)(inputs), inputs]))


def seven_levels():
    inputs = x = keras.Input((None, None, 1))
    for _ in range(7):
        x = LAYERS.MaxPooling2D(2)(x)
    for _ in range(7):
        x = LAYERS.UpSampling2D(2)(x)
    return keras.Model(inputs, LAYERS.Add()([inputs, x]))


@pytest.mark.parametrize(("model", "size"), [(seven_levels(), 128), (without_padding(), 65)])
def test_a_size_is_found_that_the_model_runs_at(model, size):
    one, three = check_batches(model)
    assert (len(one[0]), len(three[0])) == (1, 3)
    assert one[0].shape[1] == size
    model(three[0])


def test_where_no_size_fits_data_is_asked_for(monkeypatch):
    monkeypatch.setattr(comparison, "_SIZES", (64, 32))
    with pytest.raises(ValueError, match="at no height and width .* Give representative_data"):
        check_batches(nowhere())


def test_noise_has_the_size_where_one_is_open():
    model = keras.Model([x := keras.Input((None, 5, 2)), y := keras.Input((None,))], [x, y])
    assert [array.shape for array in noise(model, 2, (4, 9))] == [(2, 4, 5, 2), (2, 4)]
    bytes_ = keras.Input((6, 6, 1), dtype="uint8")
    assert noise(keras.Model(bytes_, bytes_), 1)[0].max() > 200
    with pytest.raises(ValueError, match="takes any size"):
        noise(model, 2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.0])
def test_a_difference_is_never_hidden(wrong):
    x = keras.Input((2,))
    model = keras.Model(x, [x, x])
    batch = [np.array([[1.0, 4.0]], np.float32)]
    found = comparison.difference(model, lambda a: [a[0] + [[0, wrong]], a[0]], [batch])
    assert found == wrong / 4 or np.isnan(found) == np.isnan(wrong)


def test_bytes_of_the_dense_network_and_of_tables():
    model = masked_network()
    dense = keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            LAYERS.Conv2D(6, 3),
            LAYERS.Conv2D(8, 3),
            LAYERS.GlobalMaxPooling2D(),
            LAYERS.Dense(4),
        ]
    )
    assert comparison.dense_bytes(model) == 4 * dense.count_params()
    masked, _ = comparison.table_bytes(model).values()
    kept = len(model.layers[0].positions)
    assert masked == 2 * (9 * kept + 144), f"seed {SEED}"
