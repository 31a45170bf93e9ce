"""Untrained networks by name: of the zoo, and of keras.applications."""

import functools
import inspect
from collections.abc import Callable, Sequence

import keras

from espace_tf import zoo
from espace_tf.bin.inputs import pixels

# Depths of `zoo.resnet` that have a name.
_DEPTHS = (20, 32, 44, 56)


def names() -> list[str]:
    """The names that `build` knows."""
    return sorted(_builders())


def build(name: str, shape: Sequence[int], classes: int, values: str) -> keras.Model:
    """An untrained network that takes images as files hold them, and scales them itself.

    Args:
        name: one of `names`, in letters of any case.
        shape: (height, width, channels).
        classes: outputs.
        values: what its first layer makes of values in [0, 255], one of `pixels.VALUES`; a network
            that has such a layer of its own keeps that one.

    Raises:
        ValueError: another name, or a shape that the network does not take.

    Example:
        >>> build("resnet20", (28, 28, 1), 10, "scale").input_shape
        (None, 28, 28, 1)
    """
    builders = _builders()
    if name.lower() not in builders:
        raise ValueError(
            f"--model must be a file, or one of {', '.join(sorted(builders))}. Received: {name!r}"
        )
    builder = builders[name.lower()]
    inputs = x = keras.Input(tuple(shape), name="image")
    if values != "none" and not _scales_itself(builder):
        scale, offset = pixels.affine(values, shape[-1])
        layer = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="values")
        x = layer(inputs)
    options = {"input_tensor": x, "classes": classes}
    if "weights" in inspect.signature(builder).parameters:
        options["weights"] = None
    try:
        return builder(input_shape=tuple(shape), **options)
    except ValueError as error:
        raise ValueError(
            f"--model={name} does not take images of {tuple(shape)}: {error}"
        ) from error


def _scales_itself(builder: Callable) -> bool:
    return "include_preprocessing" in inspect.signature(builder).parameters


def _builders() -> dict[str, Callable[..., keras.Model]]:
    found = {each: getattr(zoo, each) for each in zoo.__all__ if each != "resnet"}
    found |= {f"resnet{depth}": functools.partial(zoo.resnet, depth=depth) for depth in _DEPTHS}
    for name, value in vars(keras.applications).items():
        if name[:1].isupper() and callable(value):
            found[name.lower()] = value
    return found
