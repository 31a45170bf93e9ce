"""Streaming statistics of a network's convolutions: what goes in, and what the loss feels."""

import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.distribution import replicas, shares
from espace_tf.kernels.index_map import conv_table
from espace_tf.network import graph, recording
from espace_tf.network.tracing import open_rows
from espace_tf.numerics.masks import OFFSETS
from espace_tf.objectives.targets import Target
from espace_tf.records.site import Site

Batches = Iterable[tuple[Any, Any]]
# Patches per dimension of a patch: ten at least keep the covariance sound.
_PATCHES = 10
# Damage tables come from as many images as together have this many values in the maps that may be
# masked, but from _TABLE_IMAGES at least: of large maps they take longer than the gradients.
_TABLE_VALUES = 5e8
_TABLE_IMAGES = 64
_HALF_SCALE = 1024.0


def input_moments(
    model: Any,
    sites: list[Site],
    batches: Batches,
    images: int,
    seed: int,
    devices: replicas.Replicas | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Mean and covariance of the patches that each convolution reads.

    Positions are drawn per batch, the same for all its images, one from each of equal parts of the
    map; enough of them that `images` images give ten patches per patch dimension, where the maps
    are large enough. Products are float32, of
    what deviates from the batch's own mean: squares of large values that hardly vary would cancel.
    Batches are merged in float64 (Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise
    algorithm for computing sample variances", equation 2.1).

    Args:
        model: a Keras model.
        sites: the convolutions; those whose maps have no size of their own read maps of any size.
        batches: (x, y) batches; y is not used.
        images: how many images there will be, about.
        seed: of the positions.
        devices: what shares the work; None: one device. The model was made in its scope.

    Returns:
        path -> {"mean": [g, d], "covariance": [g, d, d]} float64, d = kh kw Cin / g in the order
        (a, b, c) of the kernel.
    """
    by_path = {site.path: site for site in sites}
    random = np.random.default_rng(seed)
    merged: dict[str, _Moments] = {}

    def moments(x, places):
        rows = tf.shape(tf.nest.flatten(x)[0])[0]
        with recording.record(model, by_path) as calls:
            graph.forward(model, shares.part(x))
        found: dict[str, list[tuple[tf.Tensor, ...]]] = {}
        for call in calls:
            earlier = found.setdefault(call.path, [])
            site, drawn = by_path[call.path], places[call.path][len(earlier)]
            earlier.append(_patch_moments(call.inputs, drawn, site, rows))
        return found

    devices = devices or replicas.Replicas()
    batch_moments = devices.shared(moments, batches=int(open_rows(model)))
    for x, _ in batches:
        places = {
            site.path: [
                _places(random, _positions_needed(site, math.prod(size), images))
                for size in site.output_sizes
            ]
            for site in sites
        }
        for path, calls in batch_moments(_tensors(x), places).items():
            for call in calls:
                own = merged.setdefault(path, _Moments())
                own.add(*(value.numpy() for value in call))
    return {path: own.finished() for path, own in merged.items()}


class _Moments:
    """Mean and scatter of patches, batch by batch, in float64."""

    def __init__(self):
        self._count, self._mean, self._scatter = 0, 0.0, 0.0

    def add(self, count: int, near: np.ndarray, sums: np.ndarray, products: np.ndarray) -> None:
        """Takes in `count` patches by their sums and products about a point near their mean.

        Args:
            count: of the patches.
            near: [g, d] the point.
            sums: [g, d] of what deviates from it: what rounding left in the point.
            products: [g, d, d] of what deviates from it.
        """
        offset = sums.astype(np.float64) / count
        change = near + offset - self._mean
        share = count / (self._count + count)
        self._mean = self._mean + share * change
        vectors = np.stack([change, offset], axis=1)
        weights = np.array([self._count * share, -count])[:, None]
        scatter = (vectors * weights).swapaxes(1, 2) @ vectors
        scatter += products
        scatter += self._scatter
        self._scatter = scatter
        self._count += count

    def finished(self) -> dict[str, np.ndarray]:
        """What `input_moments` returns of a layer."""
        return {"mean": self._mean, "covariance": self._scatter / self._count}


def output_statistics(
    model: Any,
    sites: list[Site],
    batches: Batches,
    target: Target,
    masked: Callable[[Site], bool],
    devices: replicas.Replicas | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """What the loss feels of each convolution's output y (before its activation), g = dL/dy.

    Args:
        model: a Keras model.
        sites: the convolutions.
        batches: (x, y) batches.
        target: from `targets.resolve`: the loss, summed over samples.
        masked: whether a site may be masked, so that its maps are needed.
        devices: what shares the work; None: one device. The model was made in its scope.

    Returns:
        path -> {"gradient": [Cout, Cout], E g g^T per sample and position}, and for those that may
        be masked also {"impact": [OH, OW], E sum_c |y g| per sample (Figurnov et al. 2016);
        "damage_table": [24, OH, OW], E sum_c |g_pc (y_pc - y_{p+offset,c})| for masks.OFFSETS, 0
        where p + offset is outside, from the first images if the maps are large}; float64.
    """
    by_path = {site.path: site for site in sites}
    totals: dict[str, dict[str, np.ndarray]] = {}
    samples, in_tables = 0, 0
    table_images = _table_images([site for site in sites if masked(site)])
    # As in mixed precision training: small gradients are not lost in float16.
    scale = _HALF_SCALE if graph.is_half(model) else 1.0

    def sums(x, labels, step, with_tables):
        rows = tf.shape(tf.nest.flatten(x)[0])[0]
        responses: list[tuple[str, tf.Tensor]] = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watched(path, layer, inputs, original):
                response, activation = linear_response(layer, inputs, original)
                response = tf.identity(response)
                tape.watch(response)
                responses.append((path, response))
                return activation(response)

            with recording.record(model, by_path, watched):
                outputs = graph.forward(model, shares.part(x))
            loss = scale * target(shares.whole(outputs, rows), labels, step)
        gradients = tape.gradient(loss, [y for _, y in responses], unconnected_gradients="zero")
        found: dict[str, dict[str, tf.Tensor]] = {}
        for (path, y), g in zip(responses, gradients, strict=True):
            y, g = tf.cast(y, tf.float32), tf.cast(g, tf.float32) / scale
            partial = _output_sums(g)
            if masked(by_path[path]):
                partial |= _map_sums(y, g, with_tables)
            before = found.get(path)
            found[path] = {k: v + before[k] for k, v in partial.items()} if before else partial
        return tf.nest.map_structure(shares.total, found)

    devices = devices or replicas.Replicas()
    batch_sums = devices.shared(sums, batches=2 * open_rows(model))  # images and labels
    for step, (x, labels) in enumerate(batches):
        size, with_tables = len(tf.nest.flatten(x)[0]), samples < table_images
        samples += size
        in_tables += size if with_tables else 0
        labels = None if labels is None else _tensors(labels)
        try:
            found = batch_sums(_tensors(x), labels, np.int32(step), np.bool_(with_tables))
        except tf.errors.InvalidArgumentError as error:
            reason = re.search(r"Received a label value of .*?\)", error.message)
            raise ValueError(
                f"data's labels do not go with the loss and the outputs in batch {step + 1}: "
                + (reason[0] if reason else error.message)
            ) from error
        for path, partial in found.items():
            total = totals.setdefault(path, {})
            for name, value in partial.items():
                total[name] = total.get(name, 0.0) + value.numpy().astype(np.float64)
    for total in totals.values():
        total["gradient"] /= total.pop("positions")
        if "impact" in total:
            total["impact"] /= samples
            total["damage_table"] /= in_tables
    return totals


def _table_images(sites: list[Site]) -> int:
    values = sum(math.prod(size) * site.filters for site in sites for size in site.output_sizes)
    return max(_TABLE_IMAGES, int(_TABLE_VALUES // max(values, 1)))


def linear_response(
    layer: Any, inputs: tf.Tensor, original: Callable
) -> tuple[tf.Tensor, Callable]:
    """A convolution's result before its activation, and the activation."""
    activation = layer.activation
    object.__setattr__(layer, "activation", None)
    try:
        return original(inputs), activation or tf.identity
    finally:
        object.__setattr__(layer, "activation", activation)


def _tensors(values: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, values)


def _places(random: np.random.Generator, count: int) -> np.ndarray:
    """A place in each of `count` equal parts of a map: shares in [0, 1) of its positions."""
    return (np.arange(count) + random.random(count)) / count


def _padded_table(site: Site, size: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The site's table at some places of a map, with 1 added: row 0 of the padded rows is zeros."""
    geometry = site.geometry_of(tuple(size.tolist()))
    return conv_table(geometry, np.unique((places * geometry.rows_out).astype(np.int64))) + 1


def _positions_needed(site: Site, available: int, images: int) -> int:
    size = int(np.prod(site.kernel_size)) * site.in_channels // site.groups
    return min(available, max(4, -(-_PATCHES * size // max(images, 1))))


def _patch_moments(
    inputs: tf.Tensor, places: tf.Tensor, site: Site, samples: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """How many patches, their mean [g, d], and sums of what deviates from it and of its products.

    Of all replicas' patches, from the inputs of this one's part of a batch of `samples`. The size
    of the map is what the images give it, another one in every batch perhaps.
    """
    channels, size = inputs.shape[-1], tf.shape(inputs)[1:3]
    table = tf.numpy_function(functools.partial(_padded_table, site), [size, places], tf.int32)
    table.set_shape([None, math.prod(site.kernel_size)])
    rows = tf.reshape(tf.cast(inputs, tf.float32), [tf.shape(inputs)[0], -1, channels])
    patches = tf.gather(tf.pad(rows, [[0, 0], [1, 0], [0, 0]]), table, axis=1)
    taps, groups = int(np.prod(site.kernel_size)), site.groups
    patches = tf.reshape(patches, [-1, taps, groups, channels // groups])
    patches = tf.reshape(
        tf.transpose(patches, [2, 0, 1, 3]), [groups, -1, taps * channels // groups]
    )
    mean = shares.mean(tf.reduce_mean(patches, axis=1), samples)
    patches -= mean[:, None]
    products = tf.matmul(patches, patches, transpose_a=True)
    sums = tf.shape(patches)[1], tf.reduce_sum(patches, axis=1), products
    count, sums, products = map(shares.total, sums)
    return count, mean, sums, products


def _output_sums(g: tf.Tensor) -> dict[str, tf.Tensor]:
    flat = tf.reshape(g, [-1, g.shape[-1]])
    positions = tf.cast(tf.shape(flat)[0], tf.float32)
    return {"gradient": tf.matmul(flat, flat, transpose_a=True), "positions": positions}


def _map_sums(y: tf.Tensor, g: tf.Tensor, with_tables: tf.Tensor) -> dict[str, tf.Tensor]:
    """Sums of |y g|, and the damage table or zeros, of [B, OH, OW, C] responses and gradients."""
    # Positions first: every sum over samples and channels then runs along contiguous memory.
    y, g = (tf.reshape(tf.transpose(a, [1, 2, 0, 3]), [*a.shape[1:3], -1]) for a in (y, tf.abs(g)))
    nothing = tf.zeros([len(OFFSETS), *y.shape[:2]])
    table = tf.cond(with_tables, lambda: _damage_table(y, g), lambda: nothing)
    return {"impact": tf.reduce_sum(tf.abs(y) * g, axis=-1), "damage_table": table}


def _damage_table(y: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
    """sum_k |g_pk| |y_pk - y_{p+offset,k}| of y and |g| [OH, OW, K], for every offset.

    An offset and its opposite share their differences. One offset comes after the other, in a loop:
    side by side they would take the memory of 24 such maps, and a graph of as many operations.
    """
    height, width, length = y.shape
    halves = [offset for offset in OFFSETS if offset > (0, 0)]

    def both(offset: tf.Tensor) -> tf.Tensor:
        """[2, OH, OW], of this offset and of its opposite."""
        offset = tf.clip_by_value(offset, [-height, -width], [height, width])
        ahead, back = tf.maximum(offset, 0), tf.maximum(-offset, 0)
        size = [*tf.unstack([height, width] - tf.abs(offset)), length or tf.shape(y)[2]]
        # p runs over the positions for which p + offset is on the map; there, p - offset is p.
        here, there = ([*tf.unstack(start), 0] for start in (back, ahead))
        change = tf.abs(tf.slice(y, here, size) - tf.slice(y, there, size))
        return tf.stack(
            [
                tf.pad(
                    tf.reduce_sum(tf.slice(g, start, size) * change, axis=-1),
                    tf.stack([before, after], axis=1),
                )
                for start, before, after in ((here, back, ahead), (there, ahead, back))
            ]
        )

    signature = tf.TensorSpec([2, height, width], tf.float32)
    table = tf.map_fn(
        both, tf.constant(halves), fn_output_signature=signature, parallel_iterations=1
    )
    places = [
        2 * halves.index(max(offset, (-offset[0], -offset[1]))) + (offset < (0, 0))
        for offset in OFFSETS
    ]
    return tf.gather(tf.reshape(table, [-1, height, width]), places)
