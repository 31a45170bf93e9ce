"""What a network would lose if layers were changed: one traced function, many assignments."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.analysis.statistics import linear_response
from espace_tf.data.distance import Distance
from espace_tf.data.losses import OutputLoss
from espace_tf.data.uneven import joined
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
        self._reference = self._answers()
        self._distance = Distance(outputs, self._reference)

    def damage(self, *changes: Change) -> float:
        """Increase of the loss per sample with these changes at once, see `Distance`."""
        own = {}
        try:
            for change in changes:
                variable = self._layers[change.site.path].kernel
                own[change.site.path] = variable.numpy()
                self._assign(change)
            changed = self._answers()
        finally:
            for change in changes:
                if change.site.path in own:
                    self._reset(change, own[change.site.path])
        return self._distance(self._reference, changed)

    def _answers(self) -> list[np.ndarray]:
        """Each output of all the images."""
        found = [self._forward(batch) for batch in self._images]
        return [joined(batches) for batches in zip(*found, strict=True)]

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
