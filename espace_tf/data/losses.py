"""What the loss gradients of an analysis belong to: labels, drawn labels or random projections."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from espace_tf.data import labels
from espace_tf.network import graph

Target = Callable[[Any, Any, int], tf.Tensor]


class Resolved(NamedTuple):
    """What `resolve` found.

    Args:
        name: "labels", "drawn labels" or "projections".
        target: target(outputs, y, step) -> scalar: the SUM over the samples of a batch, so that
            each sample's gradient is unscaled.
        classes: whether the output is one row of class scores per sample.
    """

    name: str
    target: Target
    classes: bool


def resolve(
    model: Any, loss: Any, example: tuple[Any, Any], seed: int, *, name: str = "data"
) -> Resolved:
    """The function whose gradients rank positions and channels.

    With labels it is the given loss, else the compiled one, else cross-entropy for integer or
    one-hot classes. Without labels a classifier's are drawn from its own output distribution: the
    gradient against its own argmax or probabilities is degenerate. Any other output
    is projected on random signs.

    Args:
        model: a Keras model.
        loss: as in `compile`, or None.
        example: a batch (x, y), y None without labels.
        seed: of what is drawn.
        name: the argument that the example is from, for errors.

    Raises:
        ValueError: there are labels, and no loss is given, compiled or to be inferred; losses or
            labels that are not one per output.
    """
    x, y = example
    structure = model(x, training=False)
    outputs, names = tf.nest.flatten(structure), _output_names(model, structure)
    losses = known_losses(model, loss, names)
    if y is not None:
        losses = losses or [_inferred(model, outputs, y)]
        labels.check(losses, outputs, _in_order(y, names, "labels"), name)

        def label_loss(values, y, step):
            return _loss_sum(losses, tf.nest.flatten(values), _in_order(y, names, "labels"))

        _check_loss(label_loss, structure, y, losses, name)
        return Resolved("labels", label_loss, is_classifier(outputs, losses))
    if is_classifier(outputs, losses):
        probabilities = sums_to_one(outputs[0])
        return Resolved(
            "drawn labels",
            lambda values, labels, step: _drawn_loss(values, probabilities, [seed, step]),
            True,
        )
    return Resolved(
        "projections", lambda values, labels, step: _projections(values, [seed, step]), False
    )


def _check_loss(label_loss: Target, outputs: Any, y: Any, losses: Sequence[Any], name: str) -> None:
    """Raises ValueError if the loss of a first batch cannot be computed or is not finite."""
    shapes = [tuple(np.shape(label)) for label in tf.nest.flatten(y)]
    names = [getattr(loss, "name", None) or getattr(loss, "__name__", "?") for loss in losses]
    try:
        value = float(label_loss(outputs, y, 0))
    except Exception as error:
        raise ValueError(
            f"{name}'s labels, of shapes {shapes}, do not go with the loss {', '.join(names)} and "
            f"outputs of shapes {[tuple(o.shape) for o in tf.nest.flatten(outputs)]}: {error}"
        ) from error
    if not np.isfinite(value):
        raise ValueError(
            f"the loss {', '.join(names)} of the first batch must be finite. Received: {value}; "
            "check that labels and inputs are such as the model was trained with, and finite"
        )


def is_classifier(outputs: list[tf.Tensor], losses: Sequence[Any] = ()) -> bool:
    """Whether the output is one row of class scores per sample.

    Args:
        outputs: of the model, flattened.
        losses: from `known_losses`: a row that was trained as a regression holds no class scores.
    """
    if len(outputs) != 1 or outputs[0].shape.rank != 2 or outputs[0].shape[-1] == 1:
        return False
    kinds = [f"{type(each).__name__} {getattr(each, '__name__', '')}".lower() for each in losses]
    return not any(re.search("error|huber|cosh|cosine", kind) for kind in kinds)


def known_losses(model: Any, loss: Any, names: Sequence[str]) -> list[Any]:
    """The given loss, else the compiled one: one per output; empty if there is neither.

    Args:
        model: a Keras model.
        loss: as in `compile`, or None.
        names: of the outputs, for losses in a dictionary.
    """
    loss = loss if loss is not None else getattr(model, "loss", None)
    if loss is None:
        return []

    def get(each: Any) -> Any:
        try:
            return graph.library(model).losses.get(each)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "loss must be as in compile: a loss of the model's library, its name, or a "
                f"function. Received: {each!r}"
            ) from error

    if isinstance(loss, dict | list | tuple):
        return [get(each) for each in _in_order(loss, names, "loss")]
    return [get(loss)] * len(model.outputs)


def sums_to_one(scores: tf.Tensor) -> bool:
    """Whether scores are probabilities already."""
    values = np.asarray(scores, np.float32)
    return bool((values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-2))


def log_probabilities(scores: tf.Tensor, probabilities: bool) -> tf.Tensor:
    """Logarithms of the class probabilities behind scores, float32."""
    scores = tf.cast(scores, tf.float32)
    return tf.math.log(scores + 1e-12) if probabilities else tf.nn.log_softmax(scores)


def _output_names(model: Any, outputs: Any) -> list[str]:
    """The outputs' names in the order in which tf.nest.flatten gives the outputs."""
    if isinstance(outputs, dict):
        return sorted(outputs)
    # Keras 3's sequential models do not name their output.
    return list(getattr(model, "output_names", None) or [model.layers[-1].name])


def _in_order(values: Any, names: Sequence[str], what: str) -> list[Any]:
    """One value per output, in the order of the outputs; a dictionary is read by name."""
    if not isinstance(values, dict):
        found = list(values) if isinstance(values, list | tuple) else [values]
        if len(found) != len(names):
            raise ValueError(
                f"{what} must be one for each of the outputs {list(names)}. Received: {len(found)}"
            )
        return found
    if set(values) != set(names):
        raise ValueError(f"{what} must name the outputs {list(names)}. Received: {sorted(values)}")
    return [values[name] for name in names]


def _inferred(model: Any, outputs: list[tf.Tensor], y: Any) -> Any:
    found = [np.asarray(label) for label in tf.nest.flatten(y)]
    losses = graph.library(model).losses
    if is_classifier(outputs) and len(found) == 1:
        logits = not sums_to_one(outputs[0])
        if np.issubdtype(found[0].dtype, np.integer) and found[0].size == len(outputs[0]):
            return losses.SparseCategoricalCrossentropy(from_logits=logits)
        if found[0].shape == tuple(outputs[0].shape):
            return losses.CategoricalCrossentropy(from_logits=logits)
    raise ValueError(
        "loss must be given: it is only inferred for one output of class scores with integer or "
        f"one-hot labels. Received: labels {[(each.dtype.name, each.shape) for each in found]}, "
        f"outputs of shapes {[tuple(output.shape) for output in outputs]}"
    )


def _loss_sum(losses: list[Any], outputs: list[Any], y: list[Any]) -> tf.Tensor:
    total = tf.constant(0.0)
    for loss, output, label in zip(losses, outputs, y, strict=True):
        value = tf.cast(loss(label, output), tf.float32)
        samples = tf.cast(tf.shape(output)[0], tf.float32)
        if value.shape.rank:  # a function: one value a sample, or a map of them
            value = tf.reduce_mean(value) * samples
        elif getattr(loss, "reduction", None) != "sum":
            value *= samples
        total += value
    return total


def _drawn_loss(outputs: Any, probabilities: bool, seed: list[Any]) -> tf.Tensor:
    logs = log_probabilities(tf.nest.flatten(outputs)[0], probabilities)
    drawn = tf.random.stateless_categorical(tf.stop_gradient(logs), 1, seed)
    return -tf.reduce_sum(tf.gather(logs, drawn, batch_dims=1))


def _projections(outputs: Any, seed: list[Any]) -> tf.Tensor:
    total = tf.constant(0.0)
    for index, output in enumerate(tf.nest.flatten(outputs)):
        output = tf.cast(output, tf.float32)
        signs = tf.sign(tf.random.stateless_normal(tf.shape(output), [seed[0] + index, seed[1]]))
        size = tf.cast(tf.size(output) / tf.shape(output)[0], tf.float32)
        total += tf.reduce_sum(output * signs) / tf.sqrt(size)
    return total
