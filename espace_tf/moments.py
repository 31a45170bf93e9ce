"""Streaming statistics of a network's convolutions: what goes in, and what the loss feels."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf import graph
from espace_tf.kernels.index_map import conv_table
from espace_tf.masks import OFFSETS
from espace_tf.sites import Site
from espace_tf.targets import Target

Batches = Iterable[tuple[Any, Any]]
# Patches per dimension of a patch: METHOD (a)4 asks for ten at least.
_PATCHES = 10


def input_moments(
    model: Any, sites: list[Site], batches: Batches, images: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Mean and covariance of the patches that each convolution reads.

    Positions are drawn per batch, the same for all its images; enough of them that `images` images
    give ten patches per patch dimension, where the maps are large enough. Sums within a batch are
    float32, over the batches float64.

    Args:
        model: a Keras model.
        sites: the convolutions, of known map sizes.
        batches: (x, y) batches; y is not used.
        images: how many images there will be, about.
        seed: of the positions.

    Returns:
        path -> {"mean": [g, d], "covariance": [g, d, d]} float64, d = kh kw Cin / g in the order
        (a, b, c) of the kernel.
    """
    by_path = {site.path: site for site in sites}
    tables = {site.path: [_padded_table(site, size) for size in site.input_sizes] for site in sites}
    random = np.random.default_rng(seed)
    sums: dict[str, list[np.ndarray]] = {}
    counts: dict[str, int] = {}

    @tf.function(reduce_retracing=True)
    def batch_sums(x, positions):
        with graph.record(model, by_path) as calls:
            model(x, training=False)
        found: dict[str, list[tf.Tensor]] = {}
        seen: dict[str, int] = {}
        for call in calls:
            index = seen[call.path] = seen.get(call.path, -1) + 1
            table = tf.gather(tables[call.path][index], positions[call.path][index])
            partial = _patch_sums(call.inputs, table, by_path[call.path])
            before = found.get(call.path)
            found[call.path] = (
                [a + b for a, b in zip(before, partial, strict=True)] if before else partial
            )
        return found

    for x, _ in batches:
        samples = len(tf.nest.flatten(x)[0])
        positions = {
            site.path: [
                random.choice(len(table), _positions_needed(site, len(table), images), False)
                for table in tables[site.path]
            ]
            for site in sites
        }
        for path, partial in batch_sums(_tensors(x), positions).items():
            arrays = [value.numpy().astype(np.float64) for value in partial]
            before = sums.get(path)
            sums[path] = [a + b for a, b in zip(before, arrays, strict=True)] if before else arrays
            counts[path] = counts.get(path, 0) + samples * sum(map(len, positions[path]))
    return {path: _finish(*sums[path], counts[path]) for path in sums}


def output_statistics(
    model: Any,
    sites: list[Site],
    batches: Batches,
    target: Target,
    masked: Callable[[Site], bool],
) -> dict[str, dict[str, np.ndarray]]:
    """What the loss feels of each convolution's output y (before its activation), g = dL/dy.

    Args:
        model: a Keras model.
        sites: the convolutions.
        batches: (x, y) batches.
        target: from `targets.resolve`: the loss, summed over samples.
        masked: whether a site may be masked, so that its maps are needed.

    Returns:
        path -> {"gradient": [Cout, Cout], E g g^T per sample and position}, and for those that may
        be masked also {"impact": [OH, OW], E sum_c |y g| per sample (Figurnov et al. 2016);
        "damage_table": [24, OH, OW], E sum_c |g_pc (y_pc - y_{p+offset,c})| for masks.OFFSETS, 0
        where p + offset is outside}; float64.
    """
    by_path = {site.path: site for site in sites}
    totals: dict[str, dict[str, np.ndarray]] = {}
    samples, positions = 0, {}

    @tf.function(reduce_retracing=True)
    def batch_sums(x, labels, step):
        responses: list[tuple[str, tf.Tensor]] = []
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watched(path, layer, inputs, original):
                response, activation = linear_response(layer, inputs, original)
                response = tf.identity(response)
                tape.watch(response)
                responses.append((path, response))
                return activation(response)

            with graph.record(model, by_path, watched):
                outputs = model(x, training=False)
            loss = target(outputs, labels, step)
        gradients = tape.gradient(loss, [y for _, y in responses], unconnected_gradients="zero")
        found: dict[str, dict[str, tf.Tensor]] = {}
        for (path, y), g in zip(responses, gradients, strict=True):
            partial = _output_sums(tf.cast(y, tf.float32), tf.cast(g, tf.float32))
            if masked(by_path[path]):
                partial |= _map_sums(tf.cast(y, tf.float32), tf.cast(g, tf.float32))
            before = found.get(path)
            found[path] = {k: v + before[k] for k, v in partial.items()} if before else partial
        return found

    for step, (x, labels) in enumerate(batches):
        samples += len(tf.nest.flatten(x)[0])
        found = batch_sums(
            _tensors(x), None if labels is None else _tensors(labels), np.int32(step)
        )
        for path, partial in found.items():
            arrays = {name: value.numpy().astype(np.float64) for name, value in partial.items()}
            before = totals.get(path)
            totals[path] = {k: v + before[k] for k, v in arrays.items()} if before else arrays
    for site in sites:
        positions[site.path] = sum(int(np.prod(size)) for size in site.output_sizes)
    return {
        path: {
            name: value / (samples * (positions[path] if name == "gradient" else 1))
            for name, value in found.items()
        }
        for path, found in totals.items()
    }


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


def _padded_table(site: Site, size: tuple[int, int]) -> np.ndarray:
    """The site's table with 1 added: row 0 of the padded rows is zeros."""
    return conv_table(site.geometry_of(size)) + 1


def _positions_needed(site: Site, available: int, images: int) -> int:
    size = int(np.prod(site.kernel_size)) * site.in_channels // site.groups
    return min(available, max(4, -(-_PATCHES * size // max(images, 1))))


def _patch_sums(inputs: tf.Tensor, table: tf.Tensor, site: Site) -> list[tf.Tensor]:
    """Sums of the patches and of their outer products, per group: [g, d] and [g, d, d]."""
    channels = inputs.shape[-1]
    rows = tf.reshape(tf.cast(inputs, tf.float32), [-1, np.prod(inputs.shape[1:-1]), channels])
    patches = tf.gather(tf.pad(rows, [[0, 0], [1, 0], [0, 0]]), table, axis=1)
    taps, groups = int(np.prod(site.kernel_size)), site.groups
    patches = tf.reshape(patches, [-1, taps, groups, channels // groups])
    patches = tf.reshape(
        tf.transpose(patches, [2, 0, 1, 3]), [groups, -1, taps * channels // groups]
    )
    return [tf.reduce_sum(patches, axis=1), tf.matmul(patches, patches, transpose_a=True)]


def _finish(sums: np.ndarray, products: np.ndarray, count: int) -> dict[str, np.ndarray]:
    mean = sums / count
    covariance = products / count - mean[:, :, None] * mean[:, None, :]
    return {"mean": mean, "covariance": covariance}


def _output_sums(y: tf.Tensor, g: tf.Tensor) -> dict[str, tf.Tensor]:
    flat = tf.reshape(g, [-1, y.shape[-1]])
    return {"gradient": tf.matmul(flat, flat, transpose_a=True)}


def _map_sums(y: tf.Tensor, g: tf.Tensor) -> dict[str, tf.Tensor]:
    """One offset after the other: side by side they would take the memory of 24 such maps."""
    height, width = y.shape[1], y.shape[2]
    table: list[tf.Tensor] = []
    for dy, dx in OFFSETS:
        if abs(dy) >= height or abs(dx) >= width:
            table.append(tf.zeros([height, width]))
            continue
        here = (slice(None), _inside(dy, height), _inside(dx, width))
        there = (slice(None), _inside(-dy, height), _inside(-dx, width))
        with tf.control_dependencies(table[-1:]):
            cost = tf.reduce_sum(tf.abs(g[here] * (y[here] - y[there])), axis=[0, 3])
        edges = [[max(-dy, 0), max(dy, 0)], [max(-dx, 0), max(dx, 0)]]
        table.append(tf.pad(cost, edges))
    impact = tf.reduce_sum(tf.abs(y * g), axis=[0, 3])
    return {"impact": impact, "damage_table": tf.stack(table)}


def _inside(offset: int, length: int) -> slice:
    """The positions p of an axis for which p + offset is on the map."""
    return slice(max(-offset, 0), length - max(offset, 0))
