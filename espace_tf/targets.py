"""What the loss gradients of an analysis belong to: labels, drawn labels or random projections."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf import graph

Target = Callable[[Any, Any, int], tf.Tensor]


def resolve(model: Any, loss: Any, example: tuple[Any, Any], seed: int) -> tuple[str, Target]:
    """The function whose gradients rank positions and channels, and a name for it.

    With labels it is the given loss, else the compiled one, else cross-entropy for integer or
    one-hot classes. Without labels a classifier's are drawn from its own output distribution: the
    gradient against its own argmax or probabilities is degenerate (METHOD (b)1). Any other output
    is projected on random signs.

    Args:
        model: a Keras model.
        loss: as in `compile`, or None.
        example: a batch (x, y), y None without labels.
        seed: of what is drawn.

    Returns:
        "labels", "drawn labels" or "projections", and target(outputs, y, step) -> scalar: the SUM
        over the samples of a batch, so that each sample's gradient is unscaled.

    Raises:
        ValueError: there are labels, and no loss is given, compiled or to be inferred.
    """
    x, y = example
    outputs = tf.nest.flatten(model(x, training=False))
    if y is not None:
        losses = _losses(model, loss if loss is not None else getattr(model, "loss", None))
        losses = losses or [_inferred(model, outputs, y)]
        return "labels", lambda values, labels, step: _loss_sum(losses, values, labels)
    if is_classifier(outputs):
        probabilities = sums_to_one(outputs[0])
        return (
            "drawn labels",
            lambda values, labels, step: _drawn_loss(values, probabilities, [seed, step]),
        )
    return "projections", lambda values, labels, step: _projections(values, [seed, step])


def is_classifier(outputs: list[tf.Tensor]) -> bool:
    """Whether the output is one row of class scores per sample."""
    return len(outputs) == 1 and outputs[0].shape.rank == 2 and outputs[0].shape[-1] > 1


def sums_to_one(scores: tf.Tensor) -> bool:
    """Whether scores are probabilities already."""
    values = np.asarray(scores, np.float32)
    return bool((values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-2))


def log_probabilities(scores: tf.Tensor, probabilities: bool) -> tf.Tensor:
    """Logarithms of the class probabilities behind scores, float32."""
    scores = tf.cast(scores, tf.float32)
    return tf.math.log(scores + 1e-12) if probabilities else tf.nn.log_softmax(scores)


def _losses(model: Any, loss: Any) -> list[Any] | None:
    """A loss per output, in the order of tf.nest.flatten; None if nothing is known."""
    if loss is None:
        return None
    get = graph.library(model).losses.get
    if isinstance(loss, dict):
        names = list(getattr(model, "output_names", None) or sorted(loss))
        missing = sorted(set(loss) ^ set(names))
        if missing:
            raise ValueError(f"loss must name the outputs {names}. Received: {sorted(loss)}")
        return [get(loss[name]) for name in sorted(names)]
    if isinstance(loss, list | tuple):
        return [get(each) for each in loss]
    return [get(loss)] * len(model.outputs)


def _inferred(model: Any, outputs: list[tf.Tensor], y: Any) -> Any:
    labels = [np.asarray(label) for label in tf.nest.flatten(y)]
    losses = graph.library(model).losses
    if is_classifier(outputs) and len(labels) == 1:
        logits = not sums_to_one(outputs[0])
        if np.issubdtype(labels[0].dtype, np.integer) and labels[0].size == len(outputs[0]):
            return losses.SparseCategoricalCrossentropy(from_logits=logits)
        if labels[0].shape == tuple(outputs[0].shape):
            return losses.CategoricalCrossentropy(from_logits=logits)
    raise ValueError(
        "loss must be given: it is only inferred for one output of class scores with integer or "
        f"one-hot labels. Received: labels of shapes {[label.shape for label in labels]}, outputs "
        f"of shapes {[tuple(output.shape) for output in outputs]}"
    )


def _loss_sum(losses: list[Any], outputs: Any, labels: Any) -> tf.Tensor:
    total = tf.constant(0.0)
    pairs = zip(losses, tf.nest.flatten(outputs), tf.nest.flatten(labels), strict=True)
    for loss, output, label in pairs:
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
