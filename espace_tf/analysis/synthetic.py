"""Inputs made up from what a network's batch normalisations remember of its training data."""

import time
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.network import graph, recording
from espace_tf.network.network import Network
from espace_tf.network.tracing import traced

_STEPS = 120
_SECONDS = 45.0  # for all the inputs
_BATCH = 16  # inputs that are made together: bounds the memory of the backward pass
_RATE = 0.1  # of Adam, times the spread of the inputs
_COARSE = 8  # positions of the coarsest noise that inputs begin with, per side
# (low, high) of inputs as people prepare them.
_RANGES = ((0.0, 1.0), (-1.0, 1.0), (-2.0, 2.0), (0.0, 255.0), (-128.0, 128.0))


def synthetic_inputs(network: Network, images: int, seed: int) -> np.ndarray | None:
    """Inputs whose statistics at all batch normalisations are those of the training data, about.

    They minimise, averaged over the batch normalisations and their channels,
    (m - mean)^2 / variance + log(v / variance)^2 with m and v the moments of the batch there, by
    Adam from smooth noise: the statistics term of DeepInversion (Yin et al., CVPR 2020,
    arXiv:1912.08795, equation 4) and of ZeroQ (Cai et al., CVPR 2020, arXiv:2001.00281).

    Args:
        network: a private copy, with one input of known size; its layers are watched.
        images: how many, rounded up to whole batches.
        seed: of the noise.

    Returns:
        float32 [images, ...]; None if the network has no batch normalisation to ask, or takes
        something else than one image.

    Example:
        >>> synthetic_inputs(Network.read(model).copied(), 16, seed=0).shape
        (16, 32, 32, 3)
    """
    model = network.model
    norms = {path: each for path, each in network.layers.items() if _is_norm(each)}
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    known = len(shapes) == 1 and len(shapes[0]) == 3 and None not in shapes[0]
    if not norms or not known or not tf.as_dtype(model.inputs[0].dtype).is_floating:
        return None
    size = model.inputs[0].shape[0] or _BATCH
    images = -(-images // size) * size
    distance = _distance(model, norms)
    noise = _smooth_noise((images, *shapes[0]), np.random.default_rng(seed))
    first = noise[:size]
    low, high = min(
        _RANGES, key=lambda pair: float(distance(tf.constant(pair[0] + np.ptp(pair) * first)))
    )
    slope = _slope(distance)
    parts = [noise[i : i + size] for i in range(0, images, size)]
    seconds = _SECONDS / len(parts)
    return np.concatenate([_descended(slope, low + (high - low) * part, seconds) for part in parts])


def _distance(model: Any, norms: dict[str, Any]) -> Any:
    """A traced function of inputs: how far their statistics are from those remembered."""

    @traced
    def distance(inputs: tf.Tensor) -> tf.Tensor:
        with recording.record(model, norms) as calls:
            graph.forward(model, inputs)
        terms = []
        for call in calls:
            layer = norms[call.path]
            values = tf.cast(call.inputs, tf.float32)
            others = [axis for axis in range(values.shape.rank) if axis != values.shape.rank - 1]
            mean, variance = tf.nn.moments(values, others)
            known = tf.cast(tf.convert_to_tensor(layer.moving_variance), tf.float32) + layer.epsilon
            shift = tf.cast(tf.convert_to_tensor(layer.moving_mean), tf.float32) - mean
            spread = tf.math.log((variance + layer.epsilon) / known)
            terms.append(tf.reduce_mean(tf.square(shift) / known + tf.square(spread)))
        return tf.add_n(terms) / len(terms)

    return distance


def _slope(distance: Any) -> Any:
    """A traced function of inputs: the distance, and its gradient."""

    @traced
    def slope(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = distance(inputs)
        return value, tape.gradient(value, inputs)

    return slope


def _descended(slope: Any, start: np.ndarray, seconds: float) -> np.ndarray:
    """The inputs of least distance on the way of Adam from here (Kingma and Ba, 2015)."""
    inputs = tf.constant(start, tf.float32)
    first, second = tf.zeros_like(inputs), tf.zeros_like(inputs)
    best, least, rate = start, np.inf, _RATE * float(start.std())
    end = time.perf_counter() + seconds
    for step in range(1, _STEPS + 1):
        value, gradient = slope(inputs)
        if float(value) < least:
            best, least = inputs.numpy(), float(value)
        if time.perf_counter() > end:
            break
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * tf.square(gradient)
        ahead = first / (1 - 0.9**step)
        inputs -= rate * ahead / (tf.sqrt(second / (1 - 0.999**step)) + 1e-12)
    return best


def _smooth_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise in [0, 1] with a scene's coarse parts and fine ones: [N, H, W, C] float32."""
    count, height, width, channels = shape
    total, size = np.zeros(shape, np.float32), min(_COARSE, height, width)
    weight = 1.0
    while size <= max(height, width):
        coarse = rng.random((count, size, size, channels), np.float32)
        total += weight * tf.image.resize(coarse, (height, width), method="bilinear").numpy()
        size, weight = 2 * size, weight / 2
    low, high = total.min((1, 2, 3), keepdims=True), total.max((1, 2, 3), keepdims=True)
    return (total - low) / np.maximum(high - low, 1e-6)


def _is_norm(layer: Any) -> bool:
    axis = np.atleast_1d(getattr(layer, "axis", 0)).tolist()
    return hasattr(layer, "moving_mean") and axis in ([-1], [3])
