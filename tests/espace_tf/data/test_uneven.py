"""Samples of several sizes, in memory."""

import numpy as np
import pytest
import tensorflow as tf

from espace_tf.data.arrays import count, describe
from espace_tf.data.batches import batches
from espace_tf.data.sample import sample
from espace_tf.data.uneven import Uneven, joined

SIZES = (4, 6, 4, 8, 6, 4)


def dataset(labelled=True):
    """Every image is full of its own number; its label says the number."""

    def numbered():
        for batch, size in enumerate(SIZES):
            numbers = 3 * batch + np.arange(3)
            x = np.broadcast_to(numbers[:, None, None, None], (3, size, size, 2))
            yield (x, numbers) if labelled else x

    image = tf.TensorSpec((None, None, None, 2), tf.float32)
    signature = (image, tf.TensorSpec((None,), tf.int64)) if labelled else image
    return tf.data.Dataset.from_generator(numbered, output_signature=signature)


def test_a_batch_ends_where_the_size_changes():
    found = [x.shape for x, _ in batches(dataset(), None, 5)]
    assert found == [(3, size, size, 2) for size in SIZES]
    assert [x.shape[0] for x, _ in batches(dataset(), 8, 2, start=1)] == [2, 2, 1, 2]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_sample_has_every_image_once_with_its_label(labelled):
    drawn = sample(dataset(labelled), 100, None, 0)
    assert isinstance(drawn, Uneven) and count(drawn) == 3 * len(SIZES)
    found = list(batches(drawn, None, 4))
    assert max(len(x) for x, _ in found) > 1
    numbers = np.concatenate([x[:, 0, 0, 0] for x, _ in found])
    assert sorted(numbers) == list(range(18)) and not np.array_equal(numbers, np.sort(numbers))
    for x, y in found:
        if labelled:
            np.testing.assert_array_equal(x[:, 0, 0, 0], y)
        else:
            assert y is None
    again, other = sample(dataset(labelled), 100, None, 0), sample(dataset(labelled), 100, None, 1)
    assert describe(again) == describe(drawn) != describe(other)
    first = np.concatenate([x[:, 0, 0, 0] for x, _ in batches(drawn.inputs(7), None, 4)])
    np.testing.assert_array_equal(first, numbers[:7])


def test_a_model_of_a_fixed_batch_reads_on_after_a_rest():
    model = {"x": tf.TensorSpec((2, None, None, 2))}
    found = [x[:, 0, 0, 0].tolist() for x, _ in batches(dataset(), None, 9, inputs=model)]
    assert found == [[3 * batch, 3 * batch + 1] for batch in range(len(SIZES))]


def test_maps_of_one_size_are_joined_by_sample_others_by_position():
    random = np.random.default_rng(0)
    same = [random.random((n, 4, 5, 2)) for n in (1, 3)]
    np.testing.assert_array_equal(joined(same), np.concatenate(same))
    other = [random.random((2, size, 3, 2)) for size in (4, 6)]
    np.testing.assert_array_equal(joined(other)[:24], other[0].reshape(-1, 2))
    labels = [random.integers(0, 9, (2, size, size)) for size in (4, 6)]
    assert joined(labels).ravel().tolist() == [v for each in labels for v in each.ravel().tolist()]


def test_structures_that_change_are_refused():
    element = {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}
    data = Uneven([(element, None), (element["a"], None)])
    with pytest.raises(ValueError, match="data's batches must be alike in structure"):
        list(batches(data, None, 5))
