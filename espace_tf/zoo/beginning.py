"""What a network of the zoo begins with."""

from typing import Any

import keras


def beginning(input_shape: tuple[int, int, int], input_tensor: Any) -> tuple[Any, Any]:
    """The inputs of the model to be, and the tensor that its first layer takes.

    Args:
        input_shape: (height, width, channels) of an input of its own.
        input_tensor: a symbolic tensor to begin with instead; None: that input.

    Example:
        >>> pixels = keras.Input((32, 32, 3))
        >>> inputs, x = beginning((32, 32, 3), keras.layers.Rescaling(1 / 255)(pixels))
    """
    if input_tensor is None:
        inputs = keras.Input(input_shape)
        return inputs, inputs
    (inputs,) = keras.utils.get_source_inputs(input_tensor)
    return inputs, input_tensor
