"""Multiply-accumulates of a model, counted layer by layer."""

import math
from collections import Counter
from typing import Any

import tensorflow as tf

from espace_tf.network import graph, layer_rules, recording


def layer_macs(model: Any, size: tuple[int, int] | None = None) -> dict[str, int]:
    """Multiply-accumulates per image of every layer that has any, all its calls together, by path.

    Those of convolutions of every kind and of dense layers, masks and ranks taken into account;
    biases, activations, poolings and normalisations count nothing.

    Args:
        model: a Keras model.
        size: (H, W) of inputs whose size the model leaves open, which it then runs at once.

    Raises:
        ValueError: the count depends on an input size that the model leaves open and is not given.

    Example:
        >>> layer_macs(keras.applications.MobileNet(weights=None))["conv1"]  # 112 * 112 * 27 * 32
        10838016
    """
    known = graph.layers(model)
    rules = {path: layer_rules.kin(layer) for path, layer in known.items()}
    counted = Counter()
    paths = [path for path, each in rules.items() if each.macs or each.kind == "fused"]
    for call in _calls(model, paths, size) if paths else ():
        layer = known[call.path]
        if rules[call.path].kind == "fused":
            counted[call.path] += macs(layer.model)
            continue
        sizes = [_map(call, layer, tensor) for tensor in (call.inputs, call.outputs)]
        counted[call.path] += rules[call.path].macs(layer, *sizes)
    return dict(counted)


def macs(model: Any, size: tuple[int, int] | None = None) -> int:
    """Multiply-accumulates of a model per image; arguments as of `layer_macs`.

    Example:
        >>> macs(keras.applications.MobileNet(weights=None))
        568740352
    """
    return sum(layer_macs(model, size).values())


def images_within(model: Any, memory: float, most: int, size: tuple[int, int] | None = None) -> int:
    """How many images' maps, those of all layers at once, take no more bytes; at least one.

    Args:
        model: a Keras model with known inputs.
        memory: bytes; a pass without gradients keeps all maps, one with gradients three times that.
        most: how many there are.
        size: as of `layer_macs`.

    Example:
        >>> images_within(keras.applications.MobileNet(weights=None), 1e9, 64)
        14
    """
    calls = _calls(model, list(graph.layers(model)), size)
    shapes = [tensor.shape[1:] for call in calls for tensor in tf.nest.flatten(call.outputs)]
    values = sum(math.prod(shape) for shape in shapes if None not in shape)
    return max(1, min(most, int(memory // max(4 * values, 1))))


def _calls(model: Any, paths: list[str], size: tuple[int, int] | None) -> list[recording.Call]:
    is_open = any(None in tensor.shape[1:] for tensor in getattr(model, "inputs", None) or ())
    if size is None or not is_open:
        return recording.trace(model, paths)
    return recording.run_at(model, paths, size)


def _map(call: recording.Call, layer: Any, tensor: Any) -> layer_rules.Map:
    """The size of what a call reads or writes."""
    _, *size = tf.nest.flatten(tensor)[0].shape
    if None in size:
        raise ValueError(
            f"the multiply-accumulates of {call.path} depend on its input size, which is not known."
            f" Received: input shape {tf.nest.flatten(call.inputs)[0].shape}"
        )
    first = getattr(layer, "data_format", None) == "channels_first"
    *size, channels = [*size[1:], size[0]] if first else size
    return layer_rules.Map(tuple(size), channels)
