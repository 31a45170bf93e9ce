"""What a network would lose if layers were changed: tried out, or told by slopes of its loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.analysis.statistics import linear_response
from espace_tf.data.uneven import joined
from espace_tf.kernels.index_map import nearest_spread
from espace_tf.network import graph, recording
from espace_tf.network.copies import cloning
from espace_tf.network.tracing import open_rows, traced
from espace_tf.objectives.distance import Distance
from espace_tf.objectives.losses import OutputLoss
from espace_tf.records.site import Site

_HALF_SCALE = 1024.0


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
        self._batches = int(open_rows(self._copy))
        self._forward = traced(self._call, self._batches)
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

    def alone(self, changes: Sequence[Change]) -> list[float]:
        """About the increase of the loss per sample with each of these changes by itself.

        One pass forward and one backward tell it of all of them: with g the slopes of
        `Distance.signed` at a layer's responses, which the change moves by d, the loss grows by
        half the mean square of sum g d. That is exact where the change is small, and in proportion
        where it is not; what many large changes cost together is for `damage` to find out.
        """
        given = [self._moved_by(change) for change in changes]
        squares, samples = np.zeros(len(changes)), 0
        options = {"batches": self._batches}
        slopes = traced(lambda x, given, seed: self._slopes(changes, x, given, seed), **options)
        for step, batch in enumerate(self._images):
            squares += slopes(batch, given, np.array([0, step], np.int32)).numpy()
            samples += len(tf.nest.flatten(batch)[0])
        return (squares / (2 * samples)).tolist()

    def _moved_by(self, change: Change) -> list[np.ndarray]:
        """What `_moved` needs of a change beside the layer."""
        if change.positions is not None:
            spread = nearest_spread(change.site.output_sizes[0], change.positions)
            return [np.asarray(change.positions[spread], np.int32)]
        kernel = np.asarray(self._layers[change.site.path].kernel, np.float32)
        shift = np.zeros(change.site.filters) if change.shift is None else change.shift
        return [change.kernel - kernel, np.asarray(shift, np.float32)]

    def _slopes(
        self, changes: Sequence[Change], x: Any, given: list[list[tf.Tensor]], seed: tf.Tensor
    ) -> tf.Tensor:
        """Of each change the sum over the samples of the squared change of `signed`."""
        calls = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watched(path: str, layer: Any, inputs: tf.Tensor, original: Any) -> tf.Tensor:
                response, activation = linear_response(layer, inputs, original)
                response = tf.identity(response)
                tape.watch(response)
                calls.append((path, layer, inputs, response))
                return activation(response)

            with recording.record(self._copy, {each.site.path for each in changes}, watched):
                answers = tf.nest.flatten(graph.forward(self._copy, x))
            # As in mixed precision training: small slopes are not lost in float16.
            signed = _HALF_SCALE * self._distance.signed(answers, seed)
        slopes = tape.gradient(signed, [each[-1] for each in calls], unconnected_gradients="zero")
        totals = [tf.zeros([tf.shape(tf.nest.flatten(x)[0])[0]]) for _ in changes]
        for (path, layer, inputs, response), slope in zip(calls, slopes, strict=True):
            slope = tf.cast(slope, tf.float32) / _HALF_SCALE
            for index, change in enumerate(changes):
                if change.site.path == path:
                    moved = _moved(layer, inputs, response, given[index])
                    totals[index] += tf.reduce_sum(slope * moved, axis=[1, 2, 3])
        return tf.stack([tf.reduce_sum(tf.square(total)) for total in totals])

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
            return tf.nest.flatten(graph.forward(self._copy, x))

    def _respond(self, path: str, layer: Any, inputs: tf.Tensor, original: Any) -> tf.Tensor:
        response, activation = linear_response(layer, inputs, original)
        response += tf.cast(self._shift[path], response.dtype)
        if path in self._shown:
            _, height, width, channels = response.shape
            rows = tf.reshape(response, [-1, height * width, channels])
            rows = tf.gather(rows, self._shown[path], axis=1)
            response = tf.reshape(rows, [-1, height, width, channels])
        return activation(response)


def _moved(layer: Any, inputs: tf.Tensor, response: tf.Tensor, given: list) -> tf.Tensor:
    """How far a change moves a layer's responses [B, H, W, C], float32.

    Args:
        given: the position that each position shows; or what is added to the kernel and to the
            responses.
    """
    if len(given) == 2:
        moved = layer.convolution_op(inputs, tf.cast(given[0], inputs.dtype))
        return tf.cast(moved, tf.float32) + given[1]
    rows = tf.reshape(response, [tf.shape(response)[0], -1, response.shape[-1]])
    shown = tf.gather(rows, given[0], axis=1)
    return tf.cast(tf.reshape(shown, tf.shape(response)) - response, tf.float32)
