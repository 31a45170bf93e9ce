"""ResNet-20 and its deeper siblings for small images."""

from typing import Any

import keras

from espace_tf.zoo.beginning import beginning

STAGES = (16, 32, 64)


def resnet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    *,
    depth: int = 20,
    classifier_activation: str | None = "softmax",
    input_tensor: Any = None,
    name: str | None = None,
) -> keras.Model:
    """The network of He et al. 2016 for CIFAR-10: 6 n + 2 layers, n blocks in each of three stages.

    Where a stage begins with half the size the shortcut is a 1x1 convolution with a batch norm
    (option B of the paper); a batch norm follows every convolution.

    Args:
        input_shape: (height, width, channels).
        classes: outputs.
        depth: 20, 32, 44, 56 or any other 6 n + 2.
        classifier_activation: None for logits.
        input_tensor: of this shape, what the network takes, such as a scaled keras.Input; None: its
            own keras.Input.
        name: of the model; None: "resnet" and the depth.

    Returns:
        A model [B, height, width, channels] -> [B, classes], with random weights.

    Raises:
        ValueError: another depth, or an argument that Keras refuses.

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR
    2016 (arXiv:1512.03385), section 4.2.

    Example:
        >>> resnet().count_params()
        274042
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2: 20, 32, 44, 56. Received: {depth!r}")
    inputs, x = beginning(input_shape, input_tensor)
    x = _conv(x, STAGES[0], 3, 1, "conv1")
    for stage, filters in enumerate(STAGES, 2):
        for block in range(1, (depth - 2) // 6 + 1):
            strides = 2 if stage > 2 and block == 1 else 1
            x = _block(x, filters, strides, f"conv{stage}_block{block}")
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    outputs = keras.layers.Dense(classes, activation=classifier_activation, name="predictions")(x)
    return keras.Model(inputs, outputs, name=name or f"resnet{depth}")


def _block(x: Any, filters: int, strides: int, name: str) -> Any:
    shortcut = x
    if strides > 1:
        shortcut = _conv(x, filters, 1, strides, f"{name}_shortcut", activate=False)
    x = _conv(x, filters, 3, strides, f"{name}_1")
    x = _conv(x, filters, 3, 1, f"{name}_2", activate=False)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def _conv(
    x: Any, filters: int, size: int, strides: int, name: str, *, activate: bool = True
) -> Any:
    options = {"strides": strides, "padding": "same", "use_bias": False, "name": name}
    x = keras.layers.Conv2D(filters, size, kernel_initializer="he_normal", **options)(x)
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if activate else x
