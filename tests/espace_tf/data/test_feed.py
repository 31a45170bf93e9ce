"""Batches for training: shuffled by seed and epoch, counted, taken up in the middle."""

import numpy as np
import pytest
import tensorflow as tf

from espace_tf.data.feed import Feed


def test_arrays_are_shuffled_by_seed_and_epoch():
    x = np.arange(10)
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            feed = Feed((x[:, None], x), 4, seed=seed)
            batches = list(feed.epoch(epoch))
            assert feed.steps == len(batches) == 2
            again = list(Feed((x[:, None], x), 4, seed=seed).epoch(epoch, start=1))
            np.testing.assert_array_equal(again[0][1], batches[1][1])
            for inputs, labels, weight in batches:
                np.testing.assert_array_equal(inputs[:, 0], labels)
                assert weight is None
            orders[seed, epoch] = tuple(np.concatenate([labels for _, labels, _ in batches]))
    assert len(set(orders.values())) == 4
    assert [len(inputs) for inputs, *_ in Feed({"a": x, "b": x}, 4).epoch(0)] == [2, 2, 2]


def test_a_dataset_of_unknown_length_is_counted():
    data = tf.data.Dataset.range(10).batch(2).filter(lambda x: x[0] > 3)
    assert Feed(data, 32).steps == 3
    with pytest.raises(ValueError, match="data must end.*take"):
        Feed(tf.data.Dataset.range(4).batch(2).repeat(), 32)
