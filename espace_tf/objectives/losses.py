"""The losses of a model's outputs: what `compile` was told, and what kind of values they judge."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.network import graph
from espace_tf.objectives.labels import are_classes, loss_kind

_NESTS = (Mapping, list, tuple)
TINY = 1e-7  # the smallest probability, as in Keras's cross-entropies


@dataclass(frozen=True, kw_only=True)
class OutputLoss:
    """What is known of one output of a model.

    Attributes:
        name: the output's, as a dictionary of labels has it.
        kind: "classes", rows [..., classes] that are a distribution over classes; "multi-label",
            values that are each the probability of something; "values", all else.
        weight: of this output in the loss; 0: it has none, as other outputs have one.
        loss: an object or a function of the model's library; None: not known.
        probabilities: whether classes and labels come as probabilities; otherwise as logits.
        library: keras or tf_keras.
    """

    name: str
    kind: str
    weight: float
    loss: Any
    probabilities: bool
    library: ModuleType

    @functools.cached_property
    def _judge(self) -> Any:
        """An empty model with this loss alone: it computes what `fit` would."""
        judge = self.library.Model(name="judge")
        judge.compile(loss=self.loss)
        return judge

    def summed(self, labels: Any, scores: tf.Tensor) -> tf.Tensor:
        """The weighted loss summed over the samples of a batch, so that none scales another's.

        Args:
            labels: of this output, as its loss takes them.
            scores: this output, [B, ...].
        """
        labels, scores = tf.convert_to_tensor(labels), tf.convert_to_tensor(scores)
        value = tf.cast(self._judge.compute_loss(None, labels, scores, None), tf.float32)
        whole = value.shape.rank == 0 and getattr(self.loss, "reduction", None) == "sum"
        samples = 1.0 if whole else tf.cast(tf.shape(scores)[0], tf.float32)
        return self.weight * tf.reduce_mean(value) * samples

    def log_probabilities(self, scores: tf.Tensor, temperature: float = 1.0) -> tf.Tensor:
        """Logarithms of the probabilities behind this output, float32; not of "values".

        Args:
            scores: this output.
            temperature: T of softmax(z / T).

        Returns:
            [..., classes]; of a multi-label output [..., labels, 2]: that it holds, that it does
            not.
        """
        scores = tf.cast(scores, tf.float32)
        if self.kind == "multi-label":
            other = 1.0 - scores if self.probabilities else tf.zeros_like(scores)
            scores = tf.stack([scores, other], axis=-1)
        return log_probabilities(scores, self.probabilities, temperature)


def of_outputs(model: Any, outputs: Any, labels: Any = None, loss: Any = None) -> list[OutputLoss]:
    """What is known of each output, in the order of tf.nest.flatten.

    A loss is the given one, else the compiled one with its weights, else, where there are labels,
    cross-entropy if they are integer or one-hot classes.

    Args:
        model: a Keras model.
        outputs: of some samples, at inference.
        labels: of these samples, None without labels.
        loss: as in `compile`, or None.

    Raises:
        ValueError: there are labels, and no loss is given, compiled or to be inferred; losses that
            do not go with the outputs.

    Example:
        >>> [each.kind for each in of_outputs(model, model(images))]
        ['classes']
    """
    library, flat, names = graph.library(model), tf.nest.flatten(outputs), names_of(model, outputs)
    given, weights = graph.compiled_loss(model) if loss is None else (loss, None)
    losses = [None] * len(flat)
    found = [None] * len(flat) if labels is None else in_order(labels, names, "labels", given)
    if given is not None:
        losses = [_checked(library, each) for each in _spread(given, names, "loss")]
    elif labels is not None:
        losses = [_inferred(library, *pair) for pair in zip(flat, found, strict=True)]
        if None in losses:
            raise _not_inferred(flat, labels)
    scales = [1.0] * len(flat) if weights is None else _spread(weights, names, "loss_weights")
    return [
        OutputLoss(
            name=name,
            weight=0.0
            if given is not None and loss is None
            else 1.0
            if scale is None
            else float(scale),
            loss=loss,
            library=library,
            **_kind(loss, scores, label),
        )
        for name, loss, scale, scores, label in zip(names, losses, scales, flat, found, strict=True)
    ]


def names_of(model: Any, outputs: Any) -> list[str]:
    """The outputs' names in the order in which tf.nest.flatten gives the outputs.

    Of outputs inside of outputs the way to them: "boxes/0" is the first of the list "boxes".
    """
    if is_nested(outputs):
        return list(by_path(outputs))
    if isinstance(outputs, Mapping):
        return sorted(outputs)
    # Keras 3's sequential and subclassed models do not name their outputs.
    count = len(tf.nest.flatten(outputs))
    names = list(getattr(model, "output_names", None) or [model.layers[-1].name])
    return names if len(names) == count else [f"output_{place}" for place in range(count)]


def in_order(values: Any, names: Sequence[str], what: str, losses: Any = None) -> list[Any]:
    """One value per output, in the order of the outputs; a dictionary is read by name.

    Args:
        values: one, a list, or a dictionary by name; or nested, as nested outputs are.
        names: the outputs'.
        what: the values are, for errors.
        losses: as in `compile`: where it leaves outputs out, so may the values.

    Returns:
        A list with None for an output that has no value.
    """
    if is_nested(values):
        values = by_path(values)
    if isinstance(values, Mapping):
        if set(values) <= set(names):
            return [values.get(name) for name in names]
        raise ValueError(
            f"{what} must name the outputs {list(names)}. Received: {sorted(map(str, values))}"
        )
    found = list(values) if isinstance(values, list | tuple) else [values]
    if len(found) == len(names):
        return found
    places = _places(losses, names)
    if len(found) != len(places):
        raise ValueError(
            f"{what} must be one for each of the outputs {list(names)}. Received: {len(found)}"
        )
    by_place = dict(zip(places, found, strict=True))
    return [by_place.get(place) for place in range(len(names))]


def is_nested(values: Any) -> bool:
    """Whether a list or dictionary has lists or dictionaries inside."""
    if not isinstance(values, _NESTS):
        return False
    inside = values.values() if isinstance(values, Mapping) else values
    return any(isinstance(each, _NESTS) for each in inside)


def by_path(values: Any) -> dict[str, Any]:
    """The leaves of a nest by the way to them, in the order of tf.nest.flatten.

    Example:
        >>> by_path({"boxes": [1, 2], "classes": 3})
        {'boxes/0': 1, 'boxes/1': 2, 'classes': 3}
    """
    found = {}
    pairs = sorted(values.items()) if isinstance(values, Mapping) else enumerate(values)
    for key, value in pairs:
        inside = by_path(value) if isinstance(value, _NESTS) else {"": value}
        found.update((f"{key}/{path}".rstrip("/"), each) for path, each in inside.items())
    return found


def sums_to_one(scores: Any) -> bool:
    """Whether scores [..., n > 1] are probabilities: none negative, rows that sum to 1."""
    values = np.asarray(tf.cast(scores, tf.float32))
    if values.ndim < 2 or values.shape[-1] < 2:
        return False
    return bool((values >= 0).all() and (np.abs(values.sum(-1) - 1) < 1e-2).all())


def log_probabilities(
    scores: tf.Tensor, probabilities: bool, temperature: float = 1.0
) -> tf.Tensor:
    """log softmax(z / T), float32, of logits z [..., classes] or of probabilities softmax(z)."""
    scores = tf.cast(scores, tf.float32)
    logits = tf.math.log(tf.maximum(scores, TINY)) if probabilities else scores
    return tf.nn.log_softmax(logits / temperature)


def divergence(wanted: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """KL(wanted || found) of log probabilities [..., classes], averaged over all rows."""
    return tf.reduce_mean(tf.reduce_sum(tf.exp(wanted) * (wanted - found), axis=-1))


def _kind(loss: Any, scores: tf.Tensor, label: Any) -> dict[str, Any]:
    """The kind of an output, and whether it holds probabilities already."""
    rows, kind, rank = sums_to_one(scores), loss_kind(loss), scores.shape.rank
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    last = config.get("axis", -1) in (-1, rank - 1) and rank > 1 and scores.shape[-1] > 1
    # What a loss of the user's own compares is told by what it is given.
    numbers = kind is None and label is not None and _are_numbers_of_classes(label, scores)
    if rows or numbers or (kind in ("sparse", "one-hot") and last):
        return {"kind": "classes", "probabilities": rows}
    if kind == "binary":
        within = bool(tf.reduce_all((scores >= 0) & (scores <= 1)))
        return {"kind": "multi-label", "probabilities": not config.get("from_logits", not within)}
    return {"kind": "values", "probabilities": False}


def _are_numbers_of_classes(label: Any, scores: tf.Tensor) -> bool:
    label = np.asarray(label)
    return are_classes(label, scores) and bool(((label >= 0) & (label < scores.shape[-1])).all())


def _spread(values: Any, names: Sequence[str], what: str) -> list[Any]:
    """One value per output of what `compile` takes: one for all, a list, or a dictionary."""
    if not isinstance(values, Mapping | list | tuple):
        return [values] * len(names)
    return in_order(values, names, what)


def _places(losses: Any, names: Sequence[str]) -> list[int]:
    """The outputs that have a loss."""
    each = _spread(losses, names, "loss")
    return [place for place, loss in enumerate(each) if loss is not None]


def _checked(library: ModuleType, loss: Any) -> Any:
    try:
        return None if loss is None else library.losses.get(loss)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "loss must be as in compile: a loss of the model's library, its name, or a function. "
            f"Received: {loss!r}"
        ) from error


def _inferred(library: ModuleType, scores: tf.Tensor, label: Any) -> Any:
    """The cross-entropy that goes with labels that are classes; None if they are none."""
    from_logits = not sums_to_one(scores)
    if label is None:
        return None
    if are_classes(label, scores):
        return library.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    if np.shape(label) == tuple(scores.shape) and sums_to_one(label):
        return library.losses.CategoricalCrossentropy(from_logits=from_logits)
    return None


def _not_inferred(scores: Sequence[tf.Tensor], labels: Any) -> ValueError:
    found = [(np.asarray(label).dtype.name, np.shape(label)) for label in tf.nest.flatten(labels)]
    return ValueError(
        "loss must be given, or the model be compiled with one: it is only inferred for outputs of "
        f"class scores with integer or one-hot labels. Received: labels {found}, outputs of shapes "
        f"{[tuple(each.shape) for each in scores]}"
    )
