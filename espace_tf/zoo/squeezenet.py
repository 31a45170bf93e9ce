"""SqueezeNet 1.1: eight fire modules."""

from typing import Any

import keras

from espace_tf.zoo.beginning import beginning

# Squeeze filters; either half of the expansion has four times as many. None is a pooling.
FIRES = (16, 16, None, 32, 32, None, 48, 48, 64, 64)


def squeezenet(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    input_tensor: Any = None,
    name: str = "squeezenet",
) -> keras.Model:
    """The network of Iandola et al. 2016 in the version 1.1 of its authors.

    Args:
        input_shape: (height, width, channels), at least 31 x 31.
        classes: outputs.
        dropout: rate before the last convolution.
        classifier_activation: None for logits.
        input_tensor: of this shape, what the network takes, such as a scaled keras.Input; None: its
            own keras.Input.
        name: of the model.

    Returns:
        A model [B, height, width, channels] -> [B, classes], with random weights.

    Raises:
        ValueError: an input too small for the three poolings, or another argument that Keras
            refuses.

    Source: F. Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and
    <0.5MB model size", 2016 (arXiv:1602.07360); 1.1 is of the repository that the paper names.

    Example:
        >>> squeezenet().count_params()
        1235496
    """
    layers, number = keras.layers, 2
    inputs, x = beginning(input_shape, input_tensor)
    x = layers.Conv2D(64, 3, strides=2, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    for squeeze in FIRES:
        if squeeze is None:
            x = layers.MaxPooling2D(3, 2, name=f"pool{number - 1}")(x)
            continue
        x = _fire(x, squeeze, f"fire{number}")
        number += 1
    x = layers.Dropout(dropout, name="drop9")(x)
    x = layers.Conv2D(classes, 1, activation="relu", name="conv10")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    outputs = layers.Activation(classifier_activation, name="predictions")(x)
    return keras.Model(inputs, outputs, name=name)


def _fire(x: Any, squeeze: int, name: str) -> Any:
    def conv(x: Any, filters: int, size: int, part: str) -> Any:
        options = {"padding": "same", "activation": "relu", "name": f"{name}_{part}"}
        return keras.layers.Conv2D(filters, size, **options)(x)

    x = conv(x, squeeze, 1, "squeeze")
    branches = [conv(x, 4 * squeeze, 1, "expand1x1"), conv(x, 4 * squeeze, 3, "expand3x3")]
    return keras.layers.Concatenate(name=name)(branches)
