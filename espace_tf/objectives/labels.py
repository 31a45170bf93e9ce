"""Labels: which losses want classes, and whether what is given are classes of the outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def loss_kind(loss: Any) -> str | None:
    """ "sparse", "one-hot" or "binary" for the cross-entropies; None for any other loss.

    Args:
        loss: an object of either Keras library, a function, a name, or None.

    Example:
        >>> loss_kind("sparse_categorical_crossentropy"), loss_kind("mse")
        ('sparse', None)
    """
    names = [loss] if isinstance(loss, str) else [type(loss).__name__]
    names += [getattr(loss, name, None) for name in ("name", "__name__")]
    plain = [str(name).lower().replace("_", "") for name in names if name]
    entropies = [name for name in plain if "crossentropy" in name]
    for kind, word in (("sparse", "sparse"), ("one-hot", "categorical"), ("binary", "binary")):
        if any(word in name for name in entropies):
            return kind
    return None


def are_classes(labels: Any, scores: Any) -> bool:
    """Whether labels are integers, one for each row of scores [..., classes > 1].

    Args:
        labels: an array, [...] or [..., 1].
        scores: outputs; only their shape is read.
    """
    labels, shape = np.asarray(labels), tuple(scores.shape)
    if len(shape) < 2 or shape[-1] < 2 or not np.issubdtype(labels.dtype, np.integer):
        return False
    return labels.shape in (shape[:-1], (*shape[:-1], 1))


def check(
    losses: Sequence[Any], outputs: Sequence[Any], labels: Sequence[Any], name: str = "data"
) -> None:
    """Raises unless the labels of categorical cross-entropies are classes of the outputs.

    Args:
        losses: one per output; others than categorical cross-entropies are not looked at.
        outputs: [B, ..., classes] each; only their shapes are read, B may be another, and None
            is any size.
        labels: arrays, one per output; None where there is no loss.
        name: the argument that they were given by, for errors.

    Raises:
        ValueError: labels that are missing, of another shape, no whole numbers, or outside the
            classes.

    Example:
        >>> check(["sparse_categorical_crossentropy"], [np.zeros((2, 3))], [np.array([0, 3])])
        Traceback (most recent call last):
        ValueError: data's labels must be classes of the model, from 0 to 2. Received: 0 to 3
    """
    for loss, output, label in zip(losses, outputs, labels, strict=True):
        if loss is None:
            continue
        if label is None:
            raise ValueError(f"{name} must hold labels for every output that has a loss")
        kind, array = loss_kind(loss), np.asarray(label)
        if kind == "sparse":
            axis = _class_axis(tuple(output.shape), array.shape, name)
            _check_classes(array, int(output.shape[axis]), ignored_class(loss), name)
        elif kind == "one-hot":
            _check_one_hot(tuple(output.shape), array.shape, name)


def _class_axis(output: tuple, label: tuple, name: str) -> int:
    """The axis of the outputs that the labels lack: the last one, or the loss's own."""
    for axis in range(len(output) - 1, 0, -1):
        if _fits(label[1:], (*output[1:axis], *output[axis + 1 :])):
            return axis
    if _fits(label[1:], (*output[1:-1], 1)):
        return -1
    other = "; for one-hot labels give y.argmax(-1), or CategoricalCrossentropy"
    raise ValueError(
        f"{name}'s labels must be class numbers, of shape {_text(output[1:-1])} for outputs "
        f"{_text(output[1:])} and this loss. Received: shape {label}"
        + (other if _fits(label[1:], output[1:]) else "")
    )


def _check_one_hot(output: tuple, label: tuple, name: str) -> None:
    if _fits(label[1:], output[1:]):
        return
    sparse = any(_fits(label[1:], each) for each in (output[1:-1], (*output[1:-1], 1)))
    raise ValueError(
        f"{name}'s labels must be one-hot, of the outputs' shape {_text(output[1:])}, for this "
        f"loss. Received: shape {label}"
        + ("; for class numbers give SparseCategoricalCrossentropy" if sparse else "")
    )


def _fits(shape: tuple, wanted: tuple) -> bool:
    """Whether a shape is the wanted one, of which None is any size."""
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(want in (None, got) for got, want in pairs)


def ignored_class(loss: Any) -> int | None:
    """The class that a loss leaves out, such as one that means: not labelled; None: none."""
    return loss.get_config().get("ignore_class") if hasattr(loss, "get_config") else None


def _check_classes(label: np.ndarray, classes: int, ignored: int | None, name: str) -> None:
    counted = label if ignored is None else label[label != ignored]
    if not counted.size:
        return
    if label.dtype.kind not in "iub" and not (np.mod(counted, 1) == 0).all():
        example = counted[np.mod(counted, 1) != 0].ravel()[0]
        raise ValueError(f"{name}'s labels must be whole numbers, classes. Received: {example}")
    low, high = counted.min(), counted.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}'s labels must be classes of the model, from 0 to {classes - 1}. Received: "
            f"{low} to {high}"
        )


def _text(sizes: Sequence[Any]) -> str:
    """A shape with the batch before it."""
    return f"({', '.join(['B', *('?' if size is None else str(size) for size in sizes)])})"
