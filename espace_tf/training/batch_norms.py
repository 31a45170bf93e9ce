"""Statistics of batch normalisations, estimated anew from data."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.checks import check_count
from espace_tf.data.batches import named_inputs
from espace_tf.data.feed import Feed
from espace_tf.distribution import replicas, shares
from espace_tf.network import graph, recording
from espace_tf.network.layer_rules import rule
from espace_tf.network.tracing import traced


def reestimate_batch_norm(model, data: Any, batches: int = 200, *, batch_size: int = 32) -> int:
    """Replaces the moving statistics of batch normalisations by those of the data.

    The model runs as for inference, except that every trainable BatchNormalization normalises with
    the statistics of its batch; the mean and variance over all batches together become its moving
    mean and variance. Layers with trainable=False keep theirs.

    Args:
        model: a Keras 3 or tf_keras model, changed in place.
        data: tf.data.Dataset of batches x or (x, y), or arrays.
        batches: how many batches to use at most, >= 1.
        batch_size: for arrays, which are drawn in a shuffled order.

    Returns:
        The number of layers that were re-estimated.

    Raises:
        TypeError, ValueError: `batches` or `batch_size` is no integer >= 1; no data.
    """
    check_count(batches, "batches")
    check_count(batch_size, "batch_size")
    feed = Feed(data, batch_size, seed=0, inputs=named_inputs(model))
    return BatchNorms(model).reestimate(x for x, *_ in itertools.islice(feed.epoch(0), batches))


class BatchNorms:
    """The trainable batch normalisations of a model; what finds their statistics is traced once.

    Args:
        model: a Keras 3 or tf_keras model.
        team: the replicas that the model is on.
    """

    def __init__(self, model, team: replicas.Replicas | None = None):
        self.model, self.team = model, team or replicas.Replicas()
        self._layers = {
            path: layer
            for path, layer in graph.layers(model).items()
            if rule(layer).kind == "batch_norm" and layer.trainable
        }
        self._found: list[tuple[int, str, list[tf.Tensor]]] = []
        self._statistics = traced(self._run)

    def reestimate(self, inputs: Iterator[Any]) -> int:
        """`reestimate_batch_norm` with an iterator over the batches of inputs."""
        if not self._layers:
            return 0
        counted = {path: [] for path in self._layers}
        with recording.record(self.model, list(self._layers), self._normalise):
            for batch in inputs:
                moments, paths = self._statistics(batch)
                for path, values in zip(paths.numpy(), moments, strict=True):
                    counted[path.decode()].append([v.numpy().astype("float64") for v in values])
        for path, layer in self._layers.items():
            if counted[path]:
                _assign_moments(layer, counted[path])
        return len(self._layers)

    def _normalise(self, path, layer, values, original):
        del original
        outputs, *moments = _normalise(layer, values, self._rows)
        self._found.append((threading.get_ident(), path, moments))
        return outputs

    def _run(self, batch):
        self._found.clear()
        self._rows = tf.shape(tf.nest.flatten(batch)[0])[0]
        return self.team.first(self.team.run(self._run_part, batch))

    def _run_part(self, batch):
        graph.forward(self.model, shares.part(batch))
        found = [each for thread, *each in self._found if thread == threading.get_ident()]
        return [moments for _, moments in found], tf.constant([path for path, _ in found])


def _normalise(
    layer, values: tf.Tensor, rows: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Batch-normalised values with the mean [C], variance [C] and number of rows behind them.

    Args:
        layer: the batch normalisation.
        values: what goes into it.
        rows: samples in the batch.
    """
    (axis,) = np.atleast_1d(layer.axis)
    axis = int(axis) % values.shape.rank
    others = [index for index in range(values.shape.rank) if index != axis]
    wide = tf.cast(values, tf.float32)
    mean, variance, count = shares.moments(wide, others, rows)

    def along_axis(weight):
        shape = [-1 if index == axis else 1 for index in range(values.shape.rank)]
        return tf.reshape(tf.cast(tf.convert_to_tensor(weight), tf.float32), shape)

    outputs = tf.nn.batch_normalization(
        wide,
        mean,
        variance,
        along_axis(layer.beta) if layer.center else None,
        along_axis(layer.gamma) if layer.scale else None,
        layer.epsilon,
    )
    flat = [tf.reshape(moment, [-1]) for moment in (mean, variance)]
    return tf.cast(outputs, values.dtype), *flat, count


def _assign_moments(layer, counted: list[list[np.ndarray]]) -> None:
    """The law of total variance over the batches' (mean, variance, rows)."""
    means, variances, rows = (np.stack(each) for each in zip(*counted, strict=True))
    weights = (rows / rows.sum())[:, None]
    mean = (weights * means).sum(0)
    layer.moving_mean.assign(mean.astype("float32"))
    layer.moving_variance.assign(
        (weights * (variances + (means - mean) ** 2)).sum(0).astype("float32")
    )
