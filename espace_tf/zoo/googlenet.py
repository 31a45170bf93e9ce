"""GoogLeNet: nine inception modules."""

from typing import Any

import keras

from espace_tf.zoo.beginning import beginning

# Filters of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5 and pool projection (the paper's table 1).
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOLED_AFTER = ("3b", "4e")


def googlenet(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = True,
    dropout: float = 0.4,
    classifier_activation: str | None = "softmax",
    input_tensor: Any = None,
    name: str = "googlenet",
) -> keras.Model:
    """The network of Szegedy et al. 2015, without auxiliary classifiers and response normalization.

    About 1.6 billion multiply-accumulates at 224 x 224 x 3.

    Args:
        input_shape: (height, width, channels).
        classes: outputs.
        batch_norm: a batch normalization in the place of every convolution's bias, as networks of
            this kind are trained today; False: biases, as in the paper.
        dropout: rate before the classifier.
        classifier_activation: None for logits.
        input_tensor: of this shape, what the network takes, such as a scaled keras.Input; None: its
            own keras.Input.
        name: of the model.

    Returns:
        A model [B, height, width, channels] -> [B, classes], with random weights.

    Raises:
        ValueError: an argument that Keras refuses.

    Source: C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (arXiv:1409.4842).

    Example:
        >>> googlenet(batch_norm=False).count_params()
        6998552
    """
    inputs, x = beginning(input_shape, input_tensor)
    x = _conv(x, 64, 7, "conv1", batch_norm, strides=2)
    x = _pool(x, 2, "pool1")
    x = _conv(x, 64, 1, "conv2_reduce", batch_norm)
    x = _conv(x, 192, 3, "conv2", batch_norm)
    x = _pool(x, 2, "pool2")
    for module, filters in MODULES.items():
        x = _inception(x, filters, module, batch_norm)
        if module in POOLED_AFTER:
            x = _pool(x, 2, f"pool{module[0]}")
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    x = keras.layers.Dropout(dropout, name="drop")(x)
    outputs = keras.layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    return keras.Model(inputs, outputs, name=name)


def _inception(x: Any, filters: tuple[int, ...], name: str, batch_norm: bool) -> Any:
    """Four branches side by side; the reductions are made first, as deep as the branches are."""
    single, reduce3, conv3, reduce5, conv5, projection = filters
    branches = [
        _conv(x, single, 1, f"{name}_1x1", batch_norm),
        _conv(
            _conv(x, reduce3, 1, f"{name}_3x3_reduce", batch_norm),
            *(conv3, 3, f"{name}_3x3", batch_norm),
        ),
        _conv(
            _conv(x, reduce5, 1, f"{name}_5x5_reduce", batch_norm),
            *(conv5, 5, f"{name}_5x5", batch_norm),
        ),
        _conv(_pool(x, 1, f"{name}_pool"), projection, 1, f"{name}_proj", batch_norm),
    ]
    return keras.layers.Concatenate(name=name)(branches)


def _conv(x: Any, filters: int, size: int, name: str, batch_norm: bool, strides: int = 1) -> Any:
    options = {"strides": strides, "padding": "same", "name": name}
    if not batch_norm:
        return keras.layers.Conv2D(filters, size, activation="relu", **options)(x)
    x = keras.layers.Conv2D(filters, size, use_bias=False, **options)(x)
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _pool(x: Any, strides: int, name: str) -> Any:
    return keras.layers.MaxPooling2D(3, strides, "same", name=name)(x)
