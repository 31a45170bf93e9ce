"""AlexNet: five convolutions, three poolings, dense layers."""

from collections.abc import Sequence
from typing import Any

import keras

from espace_tf.zoo.beginning import beginning


def alexnet(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    groups: int = 1,
    padding: str = "same",
    units: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    input_tensor: Any = None,
    name: str = "alexnet",
) -> keras.Model:
    """The network of Krizhevsky et al. 2012, without its local response normalization.

    Its two towers, which exchange nothing in convolutions 2, 4 and 5, are groups of channels here.
    With groups=2, padding="valid" and an input of 227 x 227 the convolutions take 55 x 55 positions
    in the first layer and 666 million multiply-accumulates altogether, as in the paper (whose 224
    does not give 55).

    Args:
        input_shape: (height, width, channels), at least 63 x 63 ("same") or 67 x 67 ("valid").
        classes: outputs.
        groups: 2 for the paper's two towers, 1 for a single one.
        padding: of the first convolution: "same" makes 56 x 56 of 224, "valid" 55 x 55 of 227.
        units: of the dense layers before the classifier.
        dropout: rate after each of those.
        classifier_activation: None for logits.
        input_tensor: of this shape, what the network takes, such as a scaled keras.Input; None: its
            own keras.Input.
        name: of the model.

    Returns:
        A model [B, height, width, channels] -> [B, classes], with random weights.

    Raises:
        ValueError: an input too small for the three poolings, or another argument that Keras
            refuses.

    Source: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep
    Convolutional Neural Networks", NIPS 2012.

    Example:
        >>> alexnet((227, 227, 3), groups=2, padding="valid").count_params()
        60965224
    """
    layers = keras.layers

    def conv(filters: int, size: int, number: int, groups: int = groups, **options):
        options = {"padding": "same", "activation": "relu", "groups": groups, **options}
        return layers.Conv2D(filters, size, name=f"conv{number}", **options)

    inputs, x = beginning(input_shape, input_tensor)
    x = conv(96, 11, 1, groups=1, strides=4, padding=padding)(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = conv(256, 5, 2)(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    x = conv(384, 3, 3, groups=1)(x)
    x = conv(384, 3, 4)(x)
    x = conv(256, 3, 5)(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = layers.Flatten(name="flatten")(x)
    for number, width in enumerate(units, 6):
        x = layers.Dense(width, activation="relu", name=f"fc{number}")(x)
        x = layers.Dropout(dropout, name=f"drop{number}")(x)
    outputs = layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    return keras.Model(inputs, outputs, name=name)
