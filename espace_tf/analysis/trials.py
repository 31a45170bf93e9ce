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
        kernel: [kh, kw, Cin / g, Cout], what the factors multiply out to; None: its own.
        shift: [Cout], added to the response, as the bias correction does; None: nothing.
        positions: kept output positions; None: all.
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

    def damage(self, *changes: Change) -> float:
        """Mean increase of the loss per sample with these changes at once, in nats for classes.

        The loss is the cross-entropy against the unchanged network's own distribution, the increase
        therefore their Kullback-Leibler divergence: the same unit as a classifier's loss, never
        negative, and far less noisy than a difference of label losses on few images. Labels that
        are each a probability: the same, mean over the labels. Values: their relative squared
        change. The outputs' are added.
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
        total = 0.0
        for output, a, b in zip(self._outputs, before, after, strict=True):
            if output.kind != "values":
                logs = output.log_probabilities(a), output.log_probabilities(b)
                total += output.weight * float(divergence(*logs))
            elif output.weight:
                change = tf.reduce_mean(tf.math.squared_difference(a, b))
                total += float(change / (tf.math.reduce_variance(a) + 1e-12))
        return total
