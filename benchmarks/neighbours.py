"""The masks of a plan in their network: nearest neighbours shown, or weighted sums of several."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import espace_tf
from espace_tf.analysis.statistics import linear_response
from espace_tf.kernels.index_map import nearest_spread
from espace_tf.network import recording
from espace_tf.network.sites import read_sites
from espace_tf.objectives import losses
from espace_tf.records.site import Site

_BATCH = 16
_RIDGE = 1e-3  # added to the diagonal of a position's normal equations, of its mean


def weighted_rows(responses: np.ndarray, shown: np.ndarray, width: int, count: int) -> np.ndarray:
    """For every output position its weights over all positions, [R, R].

    Args:
        responses: [R, S], samples (images and channels) of every position.
        shown: [R], the nearest computed position of each; the computed ones show themselves.
        width: of the map.
        count: computed positions in a sum: the nearest ones, of equally near ones the first.
    """
    computed = np.flatnonzero(shown == np.arange(len(shown)))
    weights = np.zeros((len(shown), len(shown)), np.float32)
    weights[computed, computed] = 1
    y, x = np.divmod(np.arange(len(shown)), width)
    for row in np.setdiff1d(np.arange(len(shown)), computed):
        distance = (y[computed] - y[row]) ** 2 + (x[computed] - x[row]) ** 2
        near = computed[np.argsort(distance, kind="stable")[:count]]
        seen = responses[near].astype(np.float64)
        normal = seen @ seen.T
        normal[np.diag_indices(len(near))] += _RIDGE * np.trace(normal) / len(near) + 1e-12
        weights[row, near] = np.linalg.solve(normal, seen @ responses[row])
    return weights


class Comparison:
    """The masks of a plan in their network, with either interpolation.

    Args:
        model: a classifier.
        plan: for it.
        x: images; the first half is for weights, the other to judge on.
    """

    def __init__(self, model: keras.Model, plan: espace_tf.Plan, x: np.ndarray):
        self._model, self._plan = model, plan
        self._compressed = espace_tf.apply(model, plan)  # refuses the plan of another network
        half = len(x) // 2
        self._seen, self._held = _batches(x[:half]), _batches(x[half:])
        sites = {site.path: site for site in read_sites(model)}
        self.sites: dict[str, Site] = {
            path: sites[path] for path, layer in plan.layers.items() if layer.positions is not None
        }
        outputs = model(self._held[0], training=False)
        self._probabilities = losses.sums_to_one(outputs)
        self._reference = self._outputs(model)

    def matrices(self, path: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """[R, R] each, of one mask: the nearest neighbour as weights, and the best weights."""
        size, positions = self.sites[path].output_sizes[0], self._plan.layers[path].positions
        shown = np.asarray(positions)[nearest_spread(size, positions)]
        nearest = np.eye(len(shown), dtype=np.float32)[shown]
        responses = self._responses(path, self._seen)
        return nearest, weighted_rows(responses, shown, size[1], count)

    def error_ratio(self, path: str, nearest: np.ndarray, weighted: np.ndarray) -> float:
        """Squared response error of the nearest neighbour over that of weights, on held images."""
        y = self._responses(path, self._held)
        first, other = (np.sum((each @ y - y) ** 2) for each in (nearest, weighted))
        return float(first / max(other, 1e-12))

    def loss(self, matrices: dict[str, np.ndarray]) -> float:
        """Of the dense network with these layers' rows replaced by weighted sums of them."""

        def mixed(path: str, layer: Any, inputs: tf.Tensor, original: Callable) -> tf.Tensor:
            response, activation = linear_response(layer, inputs, original)
            rows = tf.reshape(response, [-1, len(matrices[path]), response.shape[-1]])
            rows = tf.einsum("rq,bqc->brc", matrices[path], rows)
            return activation(tf.reshape(rows, tf.shape(response)))

        with recording.record(self._model, list(matrices), mixed):
            return self._divergence(self._outputs(self._model))

    def loss_of_plan(self, *, masks: bool) -> float:
        """Of the plan as it is, or of its ranks alone."""
        if masks:
            return self._divergence(self._outputs(self._compressed))
        ranks = {
            path: replace(layer, positions=None, family=None)
            for path, layer in self._plan.layers.items()
            if layer.rank is not None
        }
        return self._divergence(
            self._outputs(espace_tf.apply(self._model, espace_tf.Plan(layers=ranks)))
        )

    def _responses(self, path: str, batches: list[np.ndarray]) -> np.ndarray:
        """[R, samples] of a layer before its activation."""
        found: list[np.ndarray] = []

        def kept(path: str, layer: Any, inputs: tf.Tensor, original: Callable) -> tf.Tensor:
            response, activation = linear_response(layer, inputs, original)
            found.append(response.numpy())
            return activation(response)

        with recording.record(self._model, [path], kept):
            for batch in batches:
                self._model(batch, training=False)
        maps = np.concatenate(found)
        return (
            maps.reshape(len(maps), -1, maps.shape[-1])
            .transpose(1, 0, 2)
            .reshape(-1, len(maps) * maps.shape[-1])
        )

    def _outputs(self, model: keras.Model) -> tf.Tensor:
        """Log-probabilities on the held images."""
        scores = tf.concat([model(batch, training=False) for batch in self._held], 0)
        return losses.log_probabilities(scores, self._probabilities)

    def _divergence(self, found: tf.Tensor) -> float:
        gap = tf.exp(self._reference) * (self._reference - found)
        return float(tf.reduce_mean(tf.reduce_sum(gap, axis=-1)))


def _batches(x: np.ndarray) -> list[np.ndarray]:
    return [x[start : start + _BATCH] for start in range(0, len(x), _BATCH)]
