"""Whether labels are what a categorical cross-entropy compares outputs with."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def loss_kind(loss: Any) -> str | None:
    """ "sparse", "one-hot" for the categorical cross-entropies; None for any other loss.

    Args:
        loss: an object of either Keras library, a function, a name, or None.

    Example:
        >>> loss_kind("sparse_categorical_crossentropy"), loss_kind("mse")
        ('sparse', None)
    """
    names = [loss] if isinstance(loss, str) else [type(loss).__name__]
    names += [getattr(loss, name, None) for name in ("name", "__name__")]
    plain = [str(name).lower().replace("_", "") for name in names if name]
    if not any("categorical" in name and "crossentropy" in name for name in plain):
        return None
    return "sparse" if any("sparse" in name for name in plain) else "one-hot"


def check(losses: Sequence[Any], outputs: Sequence[Any], labels: Sequence[Any]) -> None:
    """Raises unless the labels of categorical cross-entropies are classes of the outputs.

    Args:
        losses: one per output; others than categorical cross-entropies are not looked at.
        outputs: [B, ..., classes] each; only their shapes are read, B may be another.
        labels: arrays, one per output.

    Raises:
        ValueError: labels of another shape, no whole numbers, or outside the classes.

    Example:
        >>> check(["sparse_categorical_crossentropy"], [np.zeros((2, 3))], [np.array([0, 3])])
        ValueError: data's labels must be classes of the model, from 0 to 2. Received: 0 to 3
    """
    for loss, output, label in zip(losses, outputs, labels, strict=True):
        kind, array = loss_kind(loss), np.asarray(label)
        if kind is None or getattr(loss, "axis", -1) not in (-1, len(output.shape) - 1):
            continue
        _check_shape(kind, tuple(output.shape), array.shape)
        if kind == "sparse":
            _check_classes(array, int(output.shape[-1]), getattr(loss, "ignore_class", None))


def _check_shape(kind: str, output: tuple, label: tuple) -> None:
    one_hot, sparse = output[1:] == label[1:], label[1:] in (output[1:-1], (*output[1:-1], 1))
    if kind == "sparse" and not sparse:
        allowed, other = ("B", *output[1:-1]), "y.argmax(-1), or CategoricalCrossentropy"
        raise ValueError(
            f"data's labels must be class numbers, of shape {_text(allowed)} for outputs "
            f"{_text(('B', *output[1:]))} and this loss. Received: shape {label}"
            + (f"; for one-hot labels give {other}" if one_hot else "")
        )
    if kind == "one-hot" and not one_hot:
        raise ValueError(
            f"data's labels must be one-hot, of the outputs' shape {_text(('B', *output[1:]))}, "
            f"for this loss. Received: shape {label}"
            + ("; for class numbers give SparseCategoricalCrossentropy" if sparse else "")
        )


def _check_classes(label: np.ndarray, classes: int, ignored: int | None) -> None:
    counted = label if ignored is None else label[label != ignored]
    if not counted.size:
        return
    if label.dtype.kind not in "iub" and not (np.mod(counted, 1) == 0).all():
        example = counted[np.mod(counted, 1) != 0].ravel()[0]
        raise ValueError(f"data's labels must be whole numbers, classes. Received: {example}")
    low, high = counted.min(), counted.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"data's labels must be classes of the model, from 0 to {classes - 1}. Received: "
            f"{low} to {high}"
        )


def _text(shape: Sequence[Any]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
