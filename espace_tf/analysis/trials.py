"""What a network would lose if layers were changed: one traced function, many assignments."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.analysis.statistics import linear_response
from espace_tf.data.losses import OutputLoss, divergence
from espace_tf.kernels.index_map import nearest_spread
from espace_tf.network import cloning, graph, recording
from espace_tf.records.site import Site


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """What is tried out in one layer.

    Args:
        site: the layer.
        kernel: [kh, kw, Cin / g, Cout], what the factors multiply out to; by default its own.
        shift: [Cout], added to the response, as the bias correction does; by default nothing.
        positions: kept output positions; by default all.
    """

    site: Site
    kernel: np.ndarray | None = None
    shift: np.ndarray | None = None
    positions: np.ndarray | None = None


class WhatIf:
    """A copy of a network in which any convolution's kernel and mask can be tried out.

    Each site's bias correction and the position that each output position shows are variables of
    one traced function, so that trying an option costs a forward pass and no retracing.

    Args:
        model: a Keras model; not changed.
        sites: the convolutions to be tried.
        images: batches of inputs, as the model takes them.
        outputs: what is known of each output; those of weight 0 count nothing.
    """

    def __init__(
        self, model: Any, sites: list[Site], images: list[Any], *, outputs: list[OutputLoss]
    ):
        self._copy = cloning.clone(model, lambda path, layer: None)
        self._layers = graph.layers(self._copy)
        self._images = [tf.nest.map_structure(tf.convert_to_tensor, batch) for batch in images]
        self._shift = {site.path: tf.Variable(tf.zeros([site.filters])) for site in sites}
        self._shown = {
            site.path: tf.Variable(np.arange(site.geometry().rows_out, dtype=np.int32))
            for site in sites
            if site.mask_skip is None
        }
        self._forward = tf.function(self._call)
        self._reference = [self._forward(batch) for batch in self._images]
        self._outputs = outputs
        whole = [np.concatenate(batches) for batches in zip(*self._reference, strict=True)]
        self._spreads = [_spread(*pair) for pair in zip(outputs, whole, strict=True)]

    def damage(self, *changes: Change) -> float:
        """Mean increase of the loss per sample with these changes at once, in nats for classes.

        The loss is the cross-entropy against the unchanged network's own distribution, the increase
        therefore their Kullback-Leibler divergence: the same unit as a classifier's loss, never
        negative, and far less noisy than a difference of label losses on few images. Labels that
        are each a probability: the same, mean over the labels. Values: the squared change of each
        unit over its variance, mean over the units. With several outputs those of classes and
        labels are relative to their own spread too, so that all count alike; they are added.
        """
        own = {}
        try:
            for change in changes:
                variable = self._layers[change.site.path].kernel
                own[change.site.path] = variable.numpy()
                self._assign(change)
            changed = [self._forward(batch) for batch in self._images]
        finally:
            for change in changes:
                if change.site.path in own:
                    self._reset(change, own[change.site.path])
        pairs = zip(self._reference, changed, strict=True)
        weights = [len(tf.nest.flatten(batch)[0]) for batch in self._images]
        return float(np.average([self._distance(*pair) for pair in pairs], weights=weights))

    def _assign(self, change: Change) -> None:
        site = change.site
        if change.kernel is not None:
            self._layers[site.path].kernel.assign(change.kernel)
        if change.shift is not None:
            self._shift[site.path].assign(change.shift)
        if change.positions is not None:
            spread = nearest_spread(site.output_sizes[0], change.positions)
            self._shown[site.path].assign(change.positions[spread])

    def _reset(self, change: Change, kernel: np.ndarray) -> None:
        site = change.site
        self._layers[site.path].kernel.assign(kernel)
        self._shift[site.path].assign(np.zeros(site.filters, np.float32))
        if change.positions is not None:
            shown = self._shown[site.path]
            shown.assign(np.arange(shown.shape[0], dtype=np.int32))

    def _call(self, x: Any) -> list[tf.Tensor]:
        with recording.record(self._copy, self._shift, self._respond):
            return tf.nest.flatten(self._copy(x, training=False))

    def _respond(self, path: str, layer: Any, inputs: tf.Tensor, original: Any) -> tf.Tensor:
        response, activation = linear_response(layer, inputs, original)
        response += tf.cast(self._shift[path], response.dtype)
        if path in self._shown:
            _, height, width, channels = response.shape
            rows = tf.reshape(response, [-1, height * width, channels])
            rows = tf.gather(rows, self._shown[path], axis=1)
            response = tf.reshape(rows, [-1, height, width, channels])
        return activation(response)

    def _distance(self, before: list[tf.Tensor], after: list[tf.Tensor]) -> float:
        total, several = 0.0, sum(output.weight != 0 for output in self._outputs) > 1
        for output, spread, a, b in zip(self._outputs, self._spreads, before, after, strict=True):
            if not output.weight:
                continue
            if output.kind == "values":
                change = np.square(_units(np.asarray(a)) - _units(np.asarray(b)))
                total += float((change.mean(axis=(0, 1)) / spread).mean())
                continue
            change = float(divergence(output.log_probabilities(a), output.log_probabilities(b)))
            total += change / spread if several else output.weight * change
        return total


# Nats: a head that says the same of every image is taken for one that says this much.
_LEAST_SPREAD = 1e-2


def _spread(output: OutputLoss, values: np.ndarray) -> np.ndarray | float:
    """How far an output differs from image to image: the unit of its damage.

    Of values the variance of each unit [C] over the images, mean over the positions of a map. A
    unit that is constant but for rounding takes the mean of the others. Of classes and labels the
    divergence of the images' distributions from the mean one (Lin 1991, "Divergence measures based
    on the Shannon entropy", equation 5.1).
    """
    if output.kind == "values":
        values = _units(values)
        spread, power = values.var(axis=0).mean(axis=0), np.square(values).mean(axis=(0, 1))
        varies = spread > 1e-10 * power
        usual = spread[varies].mean() if varies.any() else power.mean() or 1.0
        return np.where(varies, spread, usual)
    logs = tf.cast(output.log_probabilities(values), tf.float64)
    mean = tf.math.log(tf.reduce_mean(tf.exp(logs), axis=0))
    return max(float(divergence(logs, mean)), _LEAST_SPREAD)


def _units(values: np.ndarray) -> np.ndarray:
    """[B, positions, C] float64 of any output [B, ..., C] or [B]."""
    channels = values.shape[-1] if values.ndim > 1 else 1
    return np.asarray(values, np.float64).reshape(len(values), -1, channels)
