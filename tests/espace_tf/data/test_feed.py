"""Batches for training: shuffled by seed and epoch, counted, taken up in the middle."""

import itertools

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


def endless():
    numbers = tf.data.Dataset.range(4).batch(2).repeat()

    def generated():
        while True:
            yield np.zeros(2, np.float32)

    signature = tf.TensorSpec((2,), tf.float32)
    return {
        "repeated": (numbers, "data must end.*take"),
        "filtered": (numbers.filter(lambda x: x[0] > 0), "data must say how many.*assert_card"),
        "generated": (
            tf.data.Dataset.from_generator(generated, output_signature=signature).batch(2),
            "data must say how many.*assert_cardinality",
        ),
    }


@pytest.mark.parametrize("form", endless())
def test_steps_of_endless_data_are_asked_for(form, monkeypatch):
    monkeypatch.setattr("espace_tf.data.feed._COUNTING_SECONDS", 0.1)
    data, words = endless()[form]
    feed = Feed(data, 32)
    assert len(list(itertools.islice(feed.epoch(0), 5))) == 5
    with pytest.raises(ValueError, match=words):
        feed.steps  # noqa: B018
    told = data.take(7).apply(tf.data.experimental.assert_cardinality(7))
    assert Feed(told, 32).steps == len(list(Feed(told, 32).epoch(0))) == 7


@pytest.mark.parametrize("seed", [None, 0])
def test_a_model_of_a_fixed_batch_gets_no_other(seed):
    x = np.arange(11.0)[:, None]
    inputs = {"x": tf.TensorSpec((4, 1))}
    for data in ((x, x), tf.data.Dataset.from_tensor_slices((x, x)).batch(5)):
        feed = Feed(data, 32, seed=seed, inputs=inputs)
        assert feed.steps == 2
        assert [len(batch) for batch, *_ in feed.epoch(0)] == [4, 4]
