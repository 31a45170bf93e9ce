"""Samples that are set aside, so that training is judged by what it has not seen."""

from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data import batches as user_data
from espace_tf.data.arrays import count
from espace_tf.data.feed import Feed


def share(samples: int) -> int:
    """How many of so many samples are set aside: a tenth, 32 to 512, at most a quarter.

    Example:
        >>> share(40), share(200), share(2000), share(60000)
        (10, 32, 200, 512)
    """
    return min(max(32, samples // 10), 512, samples // 4)


def set_aside(data: Any, batch_size: int, *, seed: int, inputs: Any) -> tuple[Feed, Feed, int]:
    """Data in two parts: to train on, and to judge by.

    Of arrays, samples drawn by the seed are set aside; of a dataset its first batches, which are
    kept in memory. A dataset that shuffles anew in every pass trains on some of them later. What is
    too little for two parts is judged by itself.

    Args:
        data: as `fine_tune` takes it.
        batch_size: for arrays.
        seed: of the draw and of the order of training.
        inputs: from `named_inputs`.

    Returns:
        What to train on, what to judge by, and how many samples were set aside.

    Raises:
        TypeError, ValueError: as Feed.
    """
    whole = Feed(data, batch_size, seed=seed, inputs=inputs)
    if whole.is_dataset:
        size = len(tf.nest.flatten(next(whole.epoch(0)))[0])
        aside = min(-(-share(size * whole.steps) // size), whole.steps // 4)
        known = tf.data.experimental.assert_cardinality(whole.steps - aside)
        parts = whole.data.skip(aside).apply(known), whole.data.take(aside or 1).cache()
        return *(Feed(part, batch_size) for part in parts), aside * size
    samples = count(whole.data)
    size = user_data.fixed_batch(inputs) or 1
    aside = -(-share(samples) // size) * size
    aside = aside if samples - aside >= size else 0
    order = np.random.default_rng([seed, samples]).permutation(samples)
    rows = np.sort(order[aside:]), np.sort(order[: aside or samples])
    train = Feed(data, batch_size, seed=seed, inputs=inputs, rows=rows[0])
    return train, Feed(data, batch_size, inputs=inputs, rows=rows[1]), aside
