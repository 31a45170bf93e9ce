"""A sample of the data in memory, shuffled once: for whoever reads the same images again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data.arrays import as_arrays, count, split, take
from espace_tf.data.batches import batches
from espace_tf.data.forms import understood
from espace_tf.data.uneven import Uneven, concatenated, shapes

_BATCH = 32


def sample(data: Any, images: int, inputs: Mapping[str, Any] | None, seed: int) -> Any:
    """At most so many samples, in an order that the seed decides: x, or (x, y) with labels.

    Of arrays they are drawn from all rows: people sort them by class. Of a tf.data.Dataset they are
    the first ones, read once: one that shuffles gives others in the next pass. Samples of several
    sizes come as an `Uneven`.

    Args:
        data: as for `batches`.
        images: how many.
        inputs: from `named_inputs`.
        seed: of the draw and the order.

    Raises:
        TypeError, ValueError: data that `batches` refuses.
    """
    random, data = np.random.default_rng(seed), understood(data, inputs)
    if isinstance(data, tf.data.Dataset):
        parts = list(batches(data, images, _BATCH, inputs=inputs))
        if len(set(map(shapes, parts))) > 1:
            return Uneven(parts).shuffled(random)
        x, y = concatenated(parts)
        rows = random.permutation(len(tf.nest.flatten(x)[0]))
    else:
        x, y, _ = split(as_arrays(data))
        total = count((x, y))
        rows = random.permutation(total)[: min(images, total)]
    x, y = tf.nest.map_structure(lambda each: None if each is None else take(each, rows), (x, y))
    return x if y is None else (x, y)
