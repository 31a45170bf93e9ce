"""The rate that is found, and what is set aside to find it by."""

import numpy as np
import pytest
import tensorflow as tf

from espace_tf.training import learning_rate
from espace_tf.training.set_aside import set_aside, share


def test_the_largest_rate_that_raises_nothing_is_found():
    asked = []

    def loss_after(bound):
        def loss(rate):
            asked.append(rate)
            return 1.0 if rate <= bound else float("nan") if rate > 5e-4 else 2.0

        return loss

    assert learning_rate.find(loss_after(1e-4)) == 1e-4 and asked == [0.0, 1e-3, 3e-4, 1e-4]
    assert learning_rate.find(loss_after(1.0)) == 1e-3
    assert learning_rate.find(loss_after(0.0)) == 1e-5


@pytest.mark.parametrize("steps", [1, 3, 50, 400])
def test_the_rate_rises_and_falls_to_nothing(steps):
    rates = [learning_rate.annealed(0.1, step, steps) for step in range(steps + 1)]
    top = int(np.argmax(rates))
    assert rates[top] == 0.1 and rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()


@pytest.mark.parametrize("dataset", [False, True])
def test_samples_are_set_aside_once(dataset):
    x = np.arange(200, dtype="float32")[:, None]
    data = tf.data.Dataset.from_tensor_slices(x).batch(8) if dataset else x
    train, held, count = set_aside(data, 8, seed=1, inputs=None)
    seen = [np.concatenate([b[0] for b in feed.epoch(0)]).ravel() for feed in (train, held)]
    assert count == len(seen[1]) == 32 and not set(seen[0]) & set(seen[1])
    assert len(seen[0]) == train.steps * 8 == 168
    again = np.concatenate([b[0] for b in held.epoch(1)]).ravel()
    np.testing.assert_array_equal(again, seen[1])
    assert [share(n) for n in (3, 40, 2000, 10**6)] == [0, 10, 200, 512]
