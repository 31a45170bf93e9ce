"""How well models do on labelled data: their loss, and the accuracy that goes with it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data.batches import batches, named_inputs
from espace_tf.network import graph
from espace_tf.objectives import labels, targets
from espace_tf.objectives.losses import OutputLoss

_BATCH = 64
ACCURACIES = {"classes": "accuracy", "multi-label": "binary_accuracy"}


class Judge:
    """Judges models that are variants of one, each on all of the data.

    Args:
        model: a Keras model; its compiled loss is used if none is given.
        data: labelled samples, see `espace_tf.data.batches`.
        loss: as in `compile`, or None.
        name: the argument that the data was given by, for errors.

    Raises:
        ValueError: there are no labels, or `losses.of_outputs` refuses them.

    Example:
        >>> sorted(Judge(model, (images, labels))(model))
        ['accuracy', 'loss']
    """

    def __init__(self, model: Any, data: Any, loss: Any = None, *, name: str = "data"):
        self._data, self._options = data, {"inputs": named_inputs(model), "name": name}
        endless = tf.data.INFINITE_CARDINALITY
        if isinstance(data, tf.data.Dataset) and data.cardinality() == endless:
            raise ValueError(
                f"{name} must end: all of it is judged. Received: an endless dataset; call "
                ".take(batches) on it"
            )
        example = next(batches(data, _BATCH, _BATCH, **self._options))
        if example[1] is None:
            raise ValueError(f"{name} must have labels: (x, y). Received: x alone")
        self._resolved = targets.resolve(model, loss, example, 0, name=name)

    def __call__(self, model: Callable[[Any], Any]) -> dict[str, float]:
        """The mean "loss", and of a single output "accuracy" or "binary_accuracy".

        Accuracy is the share of rows whose largest score is the class, binary accuracy the share of
        labels on whose side of 1/2 the probability is.

        Args:
            model: a Keras model, or a function of inputs that gives the outputs of one.
        """
        outputs = self._resolved.outputs
        total, samples, right, rows = 0.0, 0, 0, 0
        for x, y in batches(self._data, None, _BATCH, **self._options):
            scores = model(graph.taken(model, x))
            targets.check_labels(outputs, scores, y, self._options["name"])
            total += float(self._resolved.target(scores, y, 0))
            samples += len(tf.nest.flatten(x)[0])
            if len(outputs) == 1 and outputs[0].kind in ACCURACIES:
                hit = hits(outputs[0], *map(np.asarray, tf.nest.flatten((scores, y))))
                right, rows = right + int(hit.sum()), rows + hit.size
        found = {"loss": total / samples}
        return found | ({ACCURACIES[outputs[0].kind]: right / rows} if rows else {})


def hits(output: OutputLoss, scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Whether each row of scores, or each score of a multi-label output, is right.

    Args:
        output: what is known of it; not "values".
        scores: [..., classes] or [..., labels].
        label: class numbers, one-hot rows, or numbers of which those above 1/2 mean yes.

    Returns:
        A flat array of truth values, without those that the loss ignores.
    """
    if output.kind == "multi-label":
        side = 0.5 if output.probabilities else 0.0
        return ((scores > side) == (label.reshape(scores.shape) > 0.5)).ravel()
    found = scores.argmax(-1).ravel()
    classes = label.argmax(-1) if label.shape == scores.shape else label
    counted = classes.ravel() != labels.ignored_class(output.loss)
    return (found == classes.ravel())[counted]


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[B], of each sample of two arrays [B, ...]; 1 where both are zeros, 0 where one is."""
    first, second = (np.asarray(each, float).reshape(len(each), -1) for each in (first, second))
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    nothing = ~(first.any(1) | second.any(1))
    return np.where(nothing, 1.0, (first * second).sum(1) / np.where(sizes == 0, 1.0, sizes))
