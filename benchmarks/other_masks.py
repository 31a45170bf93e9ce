"""Masks of a plan in other forms: for every form a plan, or a change of the applied network."""

import dataclasses
import itertools
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import espace_tf
from espace_tf.kernels.index_map import nearest_spread
from espace_tf.network import graph
from espace_tf.network.copies import cloning
from espace_tf.planning.contenders import weighted
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan

_NEIGHBOURS = 4


def weighted_plan(analysis: Analysis, speedup: float, weight: float) -> Plan:
    """The plan of a speed in which masks count so many times what they do; inf: without masks."""
    return _plan(weighted(analysis, weight), speedup)


def shared_plan(analysis: Analysis, speedup: float) -> Plan:
    """Of the plans in which the masked layers with maps of one size share their mask the best one.

    Kinds of masks (family and keep) are tried for one size of map after another, until nothing gets
    better; the positions are those of the layer that loses most by its mask.
    """
    kinds: dict[tuple, set] = {}
    for site in analysis.sites.values():
        masked = {(each.family, each.keep) for each in site.options if each.family}
        kinds.setdefault(_size(site), set()).update(masked)
    chosen: dict[tuple, tuple | None] = dict.fromkeys(kinds)
    best = _restricted(analysis, speedup, chosen)
    for _, size in itertools.product(range(2), kinds):
        for kind in sorted(kinds[size]):
            made = _restricted(analysis, speedup, {**chosen, size: kind})
            if _worth(made) < _worth(best):
                best, chosen = made, {**chosen, size: kind}
    layers = dict(best.layers)
    for size in kinds:
        same = [
            path
            for path, layer in layers.items()
            if layer.positions is not None and _size(analysis.sites[path]) == size
        ]
        for path in same:
            most = max(same, key=lambda each: layers[each].damage)
            layers[path] = dataclasses.replace(layers[path], positions=layers[most].positions)
    return dataclasses.replace(best, layers=layers)


def _plan(analysis: Analysis, speedup: float) -> Plan:
    """One of that speed, whatever it costs."""
    with warnings.catch_warnings():  # not every kind of mask gets there; its plan says how far
        warnings.simplefilter("ignore", espace_tf.UnreachableSpeedWarning)
        return espace_tf.plan(analysis, speedup=speedup, damage_scale=1e-6)


def _size(site: Any) -> tuple[int, int]:
    return site.site.output_sizes[0]


def _restricted(analysis: Analysis, speedup: float, chosen: dict[tuple, tuple | None]) -> Plan:
    """The plan without masks of other kinds than the chosen one of the map's size."""
    sites = {
        path: dataclasses.replace(
            site,
            options=tuple(
                each
                for each in site.options
                if each.family is None or (each.family, each.keep) == chosen[_size(site)]
            ),
        )
        for path, site in analysis.sites.items()
    }
    return _plan(dataclasses.replace(analysis, sites=sites), speedup)


def _worth(made: Plan) -> tuple[float, float]:
    """Smaller is better: first by how much the speed is missed, then what is lost."""
    missed = max(0.99 * made.speedup - made.predicted_speedup, 0.0)
    return missed, sum(layer.damage or 0.0 for layer in made.layers.values())


def refined(model: keras.Model, small: keras.Model, made: Plan, trained: Analysis) -> keras.Model:
    """The compressed network with its weights, its masks chosen anew.

    Args:
        model: the dense network.
        small: its compressed form, trained.
        made: the plan of that.
        trained: analysis of the dense network that has the weights of `small`.
    """
    layers = {
        path: layer
        if layer.positions is None
        else dataclasses.replace(
            layer, positions=trained.sites[path].positions(layer.family, layer.keep)
        )
        for path, layer in made.layers.items()
    }
    again = espace_tf.apply(model, dataclasses.replace(made, layers=layers))
    again.set_weights(small.get_weights())
    return again


def interpolated(small: keras.Model, *, plan: Plan, trained: bool) -> keras.Model:
    """A compressed network in which skipped positions show sums of their four nearest neighbours.

    Args:
        small: what `apply` made of the plan.
        plan: with masks.
        trained: whether the weights of the sums are.
    """
    masked = {path: each for path, each in plan.layers.items() if each.positions is not None}

    def replace(path: str, layer: Any) -> Any:
        if path not in masked:
            return None
        same = type(layer).from_config(layer.get_config())
        shown = Shown(masked[path].positions, masked[path].output_size, same, trained)
        return [same, shown]

    copy = cloning.clone(small, replace)
    new, old = graph.layers(copy), graph.layers(small)
    for path in masked:
        new[path].set_weights(old[path].get_weights())
    return copy


class Shown(keras.layers.Layer):
    """What a masked layer gave, with sums of four computed neighbours at skipped positions.

    While training fades from the dense layer to the masked one, so do the sums.

    Args:
        positions: the computed ones, [Q].
        size: of the map.
        masked: the layer before this one.
        trained: whether the weights of the sums are.
    """

    def __init__(self, positions: np.ndarray, size: tuple[int, int], masked: Any, trained: bool):
        super().__init__()
        self._masked = [lambda: masked]  # not tracked: it has its own place in the network
        self._nearest = np.asarray(positions)[nearest_spread(size, positions)]
        self._near, weights = neighbours(np.asarray(positions), size)
        self._weights = self.add_weight(
            shape=weights.shape, initializer=lambda *_, **__: weights, trainable=trained, name="sum"
        )
        skipped = np.ones(len(self._near), np.float32)
        skipped[np.asarray(positions)] = 0
        self._skipped = skipped[:, None]

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[B, H, W, C], as it comes and goes."""
        rows = tf.reshape(inputs, [-1, len(self._near), inputs.shape[-1]])
        fade = self._masked[0]().fade if training else None
        fade = 1.0 if fade is None else fade() if callable(fade) else fade
        summed = sum(
            self._weights[:, index, None] * tf.gather(rows, self._near[:, index], axis=1)
            for index in range(_NEIGHBOURS)
        )
        change = self._skipped * (summed - tf.gather(rows, self._nearest, axis=1))
        return tf.reshape(rows + tf.cast(fade, rows.dtype) * change, tf.shape(inputs))


def neighbours(positions: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each output position its four nearest computed ones, and weights that sum to 1, [R, 4].

    Example:
        >>> near, weights = neighbours(np.array([0, 2, 6, 8]), (3, 3))
        >>> near[4].tolist(), weights[4].tolist()
        ([0, 2, 6, 8], [0.25, 0.25, 0.25, 0.25])
    """
    y, x = np.divmod(np.arange(size[0] * size[1]), size[1])
    squared = (y[:, None] - y[positions]) ** 2 + (x[:, None] - x[positions]) ** 2
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :_NEIGHBOURS]
    distance = np.maximum(np.take_along_axis(squared, nearest, axis=1), 1e-6)
    weights = 1 / distance
    weights /= weights.sum(axis=1, keepdims=True)
    return positions[nearest], weights.astype(np.float32)
