"""Multiply-accumulates, parameters and bytes of a model, counted layer by layer."""

import math
from dataclasses import dataclass
from typing import Any

from espace_tf.network import graph, recording
from espace_tf.network.sites import read_sites
from espace_tf.records.site import Site


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


def layer_costs(model: Any) -> list[LayerCost]:
    """The cost of every layer with weights, masks and ranks taken into account.

    Convolutions of every kind and dense layers are counted; other layers count no
    multiply-accumulates.

    Raises:
        ValueError: the count depends on an input size that the model leaves open.

    Example:
        >>> layer_costs(keras.applications.VGG16(weights=None))[0].macs  # 224 * 224 * 27 * 64
        86704128
    """
    known = graph.layers(model)
    counted = {
        site.path: _site_macs(site, known[site.path])
        for site in read_sites(model)
        if site.path in known and site.input_sizes
    }
    dense = {path: layer for path, layer in known.items() if type(layer).__name__ == "Dense"}
    for call in recording.trace(model, dense) if dense else ():
        counted[call.path] = counted.get(call.path, 0) + _dense_macs(call)
    fused = {path: layer for path, layer in known.items() if type(layer).__name__ == "FusedGraph"}
    counted |= {path: macs(layer.model) for path, layer in fused.items()}
    return [
        LayerCost(
            path,
            counted.get(path, 0),
            sum(math.prod(weight.shape) for weight in layer.weights),
            sum(weight.nbytes for weight in layer.get_weights()),
        )
        for path, layer in known.items()
        if layer.weights
    ]


def macs(model: Any) -> int:
    """Multiply-accumulates of a model per image.

    Example:
        >>> macs(keras.applications.VGG16(weights=None))
        15470264320
    """
    return sum(layer.macs for layer in layer_costs(model))


def _site_macs(site: Site, layer: Any) -> int:
    return site.macs(
        rank=getattr(layer, "rank", None) if site.kind == "decomposed" else None,
        order=getattr(layer, "order", "vertical"),
        positions=getattr(layer, "positions", None),
    )


def _dense_macs(call: recording.Call) -> int:
    *batch, inputs = call.inputs.shape
    if None in batch[1:]:
        raise ValueError(
            f"the multiply-accumulates of {call.path} depend on its input size, which is not known."
            f" Received: shape {call.inputs.shape}"
        )
    return math.prod(batch[1:]) * inputs * call.outputs.shape[-1]
