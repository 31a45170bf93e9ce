"""Multiply-accumulates, parameters and bytes of a model, counted layer by layer."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from espace_tf.network import graph, layer_rules, recording


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs.

    Args:
        path: of `graph.layers`.
        macs: multiply-accumulates per image, all calls together; biases, activations, poolings and
            normalisations count nothing.
        parameters: weights, those of batch norms included.
        weight_bytes: of the weights as they are stored in memory.
    """

    path: str
    macs: int
    parameters: int
    weight_bytes: int


def layer_costs(model: Any, size: tuple[int, int] | None = None) -> list[LayerCost]:
    """The cost of every layer with weights, masks and ranks taken into account.

    Convolutions of every kind and dense layers are counted; other layers count no
    multiply-accumulates.

    Args:
        model: a Keras model.
        size: (H, W) of inputs whose size the model leaves open, which it then runs at once.

    Raises:
        ValueError: the count depends on an input size that the model leaves open and is not given.

    Example:
        >>> layer_costs(keras.applications.MobileNet(weights=None))[0].macs  # 112 * 112 * 27 * 32
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
    return [
        LayerCost(
            path,
            counted[path],
            sum(math.prod(weight.shape) for weight in layer.weights),
            sum(weight.nbytes for weight in layer.get_weights()),
        )
        for path, layer in known.items()
        if layer.weights
    ]


def macs(model: Any, size: tuple[int, int] | None = None) -> int:
    """Multiply-accumulates of a model per image; arguments as of `layer_costs`.

    Example:
        >>> macs(keras.applications.MobileNet(weights=None))
        568740352
    """
    return sum(layer.macs for layer in layer_costs(model, size))


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
