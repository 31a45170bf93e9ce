"""What the loss gradients of an analysis belong to: labels, drawn labels or random projections."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from espace_tf.network import graph
from espace_tf.objectives import labels, losses
from espace_tf.objectives.losses import OutputLoss

Target = Callable[[Any, Any, int], tf.Tensor]


class Resolved(NamedTuple):
    """What `resolve` found.

    Args:
        name: "labels", "drawn labels" or "projections".
        target: target(outputs, y, step) -> scalar: the SUM over the samples of a batch, so that
            each sample's gradient is unscaled.
        outputs: what is known of each output.
    """

    name: str
    target: Target
    outputs: list[OutputLoss]


def resolve(
    model: Any, loss: Any, example: tuple[Any, Any], seed: int, *, name: str = "data"
) -> Resolved:
    """The function whose gradients rank positions and channels.

    With labels it is the loss, see `losses.of_outputs`. Without labels those of classes are drawn
    from the output's own distribution: the gradient against its own argmax or probabilities is
    degenerate. Any other output is projected on random signs.

    Args:
        model: a Keras model.
        loss: as in `compile`, or None.
        example: a batch (x, y), y None without labels.
        seed: of what is drawn.
        name: the argument that the example is from, for errors.

    Raises:
        ValueError: there are labels, and no loss is given, compiled or to be inferred; losses or
            labels that do not go with the outputs.
    """
    x, y = example
    scores = graph.forward(model, x)
    outputs = losses.of_outputs(model, scores, y, loss)
    if y is not None:
        _check_loss(outputs, scores, y, name)
        return Resolved("labels", lambda *values: _label_loss(outputs, *values), outputs)
    drawn = all(each.kind != "values" for each in outputs if each.weight)
    return Resolved(
        "drawn labels" if drawn else "projections",
        lambda values, y, step: _own_loss(outputs, values, [seed, step]),
        outputs,
    )


def check_labels(outputs: Sequence[OutputLoss], scores: Any, y: Any, name: str) -> None:
    """Raises ValueError if labels of a batch are no classes of the outputs.

    Args:
        outputs: of `Resolved`.
        scores: the outputs' values; only their shapes are read.
        y: the labels; None: nothing to check.
        name: the argument that they were given by, for errors.
    """
    if y is not None:
        losses_ = [each.loss for each in outputs]
        labels.check(losses_, tf.nest.flatten(scores), _of(outputs, y), name)


def _check_loss(outputs: Sequence[OutputLoss], scores: Any, y: Any, name: str) -> None:
    """Raises ValueError if the loss of a first batch cannot be computed or is not finite."""
    check_labels(outputs, scores, y, name)
    shapes = [tuple(np.shape(label)) for label in tf.nest.flatten(y)]
    counted = [each.loss for each in outputs if each.weight]
    names = [getattr(loss, "name", None) or getattr(loss, "__name__", "?") for loss in counted]
    try:
        value = float(_label_loss(outputs, scores, y, 0))
    except Exception as error:
        raise ValueError(
            f"{name}'s labels, of shapes {shapes}, do not go with the loss {', '.join(names)} and "
            f"outputs of shapes {[tuple(o.shape) for o in tf.nest.flatten(scores)]}: {error}"
        ) from error
    if not np.isfinite(value):
        raise ValueError(
            f"the loss {', '.join(names)} of the first batch must be finite. Received: {value}; "
            "check that labels and inputs are such as the model was trained with, and finite"
        )


def _of(outputs: Sequence[OutputLoss], y: Any) -> list[Any]:
    """The labels of each output, None where it has none."""
    counted = [each.loss for each in outputs]
    return losses.in_order(y, [each.name for each in outputs], "labels", counted)


def _label_loss(outputs: Sequence[OutputLoss], scores: Any, y: Any, step: Any) -> tf.Tensor:
    del step
    found = zip(outputs, tf.nest.flatten(scores), _of(outputs, y), strict=True)
    return tf.add_n([each.summed(label, value) for each, value, label in found if each.weight])


def _own_loss(outputs: Sequence[OutputLoss], scores: Any, seed: list[Any]) -> tf.Tensor:
    total = tf.constant(0.0)
    for index, (each, value) in enumerate(zip(outputs, tf.nest.flatten(scores), strict=True)):
        if each.weight:
            function = _projected if each.kind == "values" else _drawn
            total += function(
                each, tf.cast(value, tf.float32), [(seed[0] + index) % 2**31, seed[1]]
            )
    return total


def _drawn(output: OutputLoss, scores: tf.Tensor, seed: list[Any]) -> tf.Tensor:
    logs = output.log_probabilities(scores)
    rows = tf.reshape(logs, [-1, logs.shape[-1]])
    drawn = tf.random.stateless_categorical(tf.stop_gradient(rows), 1, seed)
    samples = tf.cast(tf.shape(scores)[0], tf.float32)
    return -samples * output.weight * tf.reduce_mean(tf.gather(rows, drawn, batch_dims=1))


def _projected(output: OutputLoss, scores: tf.Tensor, seed: list[Any]) -> tf.Tensor:
    del output
    signs = tf.sign(tf.random.stateless_normal(tf.shape(scores), seed))
    size = tf.cast(tf.size(scores) / tf.shape(scores)[0], tf.float32)
    return tf.reduce_sum(scores * signs) / tf.sqrt(size)
