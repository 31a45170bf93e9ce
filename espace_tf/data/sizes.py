"""What a model and its data fix of a configuration: the batch, and the size of open inputs."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.config import EspaceConfig
from espace_tf.data.batches import batches, fixed_batch, in_order, named_inputs


def fitted(model: Any, data: Any, config: EspaceConfig) -> EspaceConfig:
    """The configuration with the model's fixed batch size, and the data's size where that is open.

    Args:
        model: a Keras model.
        data: as for `compress`; its first batch is read and checked; None without data.
        config: its own input_size goes before the data's.

    Raises:
        TypeError, ValueError: data that do not go with the model; no size where one is needed.
    """
    inputs = named_inputs(model)
    first = None if data is None else next(batches(data, 1, 1, inputs=inputs))[0]
    config = dataclasses.replace(config, batch_size=fixed_batch(inputs) or config.batch_size)
    tensors = getattr(model, "inputs", None) or ()
    places = [place for place, tensor in enumerate(tensors) if None in tensor.shape[1:]]
    if not places or config.input_size is not None:
        return config
    if first is None:
        raise ValueError(
            f"config must have an input_size, (H, W), because model {model.name!r} leaves the size "
            "of its inputs open and there is no data that has one. Received: None"
        )
    shapes = [array.shape for array in in_order(model, first)]
    sizes = {shapes[place][1:-1] for place in places}
    if len(sizes) > 1 or len(shapes[places[0]]) != 4:
        raise ValueError(
            f"inputs of open size must be maps of one size. Received: {sorted(sizes)}; give the "
            "model inputs of fixed size"
        )
    return dataclasses.replace(config, input_size=sizes.pop())


def largest_map(x: Any) -> tuple[int, int] | None:
    """(H, W) of the largest of a batch's inputs that are maps; None if none is.

    Example:
        >>> largest_map([np.zeros((2, 8, 6, 3)), np.zeros((2, 5))])
        (8, 6)
    """
    sizes = [tuple(np.shape(each)[1:3]) for each in tf.nest.flatten(x) if np.ndim(each) == 4]
    return max(sizes, key=math.prod, default=None)
