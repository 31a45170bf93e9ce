"""A Keras 3 model as the graph that packed regions are found in: one description per container."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from espace_tf import graph
from espace_tf.kernels.index_map import Geometry
from espace_tf.regions import Node

# Position by position: on packed rows [B, Q, 1, C] they do what they do on maps.
_POINTWISE = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax", "Identity", "Rescaling"),
    *("BatchNormalization", "LayerNormalization", "Dropout", "SpatialDropout2D", "AlphaDropout"),
    *("GaussianNoise", "GaussianDropout"),
    *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"),
)
_POOLINGS = {"MaxPooling2D": "max", "AveragePooling2D": "average"}
_MOVED = ("ZeroPadding2D", "Cropping2D", "UpSampling2D")
_LAST = ([-1], [3])


@dataclass(frozen=True, eq=False)
class Topology:
    """The calls of one container.

    Attributes:
        nodes: in order of execution; their names are paths.
        sizes: (H, W) of every tensor that is a map of known size, by number, else None.
        outputs: tensors that leave the container.
        dtypes: of every tensor.
    """

    nodes: list[Node]
    sizes: dict[int, tuple[int, int] | None]
    outputs: list[int]
    dtypes: dict[int, str]


def topologies(model: Any) -> list[Topology]:
    """Of a model and of all models inside it, each once.

    Args:
        model: a Functional or Sequential Keras 3 model that has been built.
    """
    prefixes: dict[int, str] = {id(model): ""}
    times: dict[int, int] = {}
    containers = graph.containers(model)
    for container in containers:
        for layer, *_ in graph.nodes(container):
            times[id(layer)] = times.get(id(layer), 0) + 1
            if graph.is_container(layer):
                prefixes.setdefault(id(layer), f"{prefixes[id(container)]}{layer.name}/")
    return [
        _topology(each, prefixes[id(each)], times) for each in containers if id(each) in prefixes
    ]


def _topology(container: Any, prefix: str, times: dict[int, int]) -> Topology:
    nodes, tensors = [], {id(tensor): tensor for tensor in container.inputs}
    for layer, inputs, outputs, training in graph.nodes(container):
        tensors.update((id(tensor), tensor) for tensor in (*inputs, *outputs))
        plain = times[id(layer)] == 1 and not training and len(outputs) == 1
        nodes.append(
            Node(
                name=prefix + layer.name,
                inputs=tuple(map(id, inputs)),
                outputs=tuple(map(id, outputs)),
                **(_described(layer, inputs, outputs) if plain else {"kind": "opaque"}),
            )
        )
    return Topology(
        nodes=nodes,
        sizes={key: _size(tensor) for key, tensor in tensors.items()},
        outputs=[id(tensor) for tensor in container.outputs],
        dtypes={key: str(tensor.dtype) for key, tensor in tensors.items()},
    )


def _size(tensor: Any) -> tuple[int, int] | None:
    shape = tuple(tensor.shape)
    return shape[1:3] if len(shape) == 4 and None not in shape[1:] else None


def _described(layer: Any, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    """The kind of a layer and what belongs to it, as arguments of Node."""
    opaque, kind = {"kind": "opaque"}, type(layer).__name__
    ours = kind in ("MaskedConv2D", "DecomposedConv2D") and layer.packing is None
    if not ours and not type(layer).__module__.startswith("keras.src.layers."):
        return opaque  # a subclass computes what it likes
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return opaque
    if None in map(_size, inputs) or not _is_plain(getattr(layer, "activation", None)):
        return opaque
    if ours:
        geometry = _geometry(layer, layer.kernel_size, inputs)
        return {"kind": "conv", "geometry": geometry, "positions": layer.positions}
    if kind == "GlobalAveragePooling2D":
        return {"kind": "global"}
    if kind in _POOLINGS and _size(outputs[0]):
        return {"kind": _POOLINGS[kind], "geometry": _geometry(layer, layer.pool_size, inputs)}
    if kind in _MOVED and getattr(layer, "interpolation", "nearest") == "nearest":
        return {"kind": "moved", "moved": moved_rows(layer, _size(inputs[0]))}
    if kind in _POINTWISE and _is_pointwise(layer, kind):
        return {"kind": "pointwise"}
    single = kind == "Conv2D" and math.prod((*layer.kernel_size, *layer.strides)) == 1
    return {"kind": "mixing"} if single or kind == "Dense" else opaque


def _geometry(layer: Any, kernel_size: tuple[int, int], inputs: list[Any]) -> Geometry:
    return Geometry(
        kernel_size=tuple(kernel_size),
        input_size=_size(inputs[0]),
        strides=tuple(layer.strides),
        dilation_rate=tuple(getattr(layer, "dilation_rate", (1, 1))),
        padding=layer.padding,
    )


def _is_plain(activation: Any) -> bool:
    """Whether an activation is Keras's own, which all work position by position."""
    return activation is None or getattr(activation, "__module__", "").startswith("keras.src.")


def _is_pointwise(layer: Any, kind: str) -> bool:
    axis = np.atleast_1d(getattr(layer, "axis", -1)).tolist()
    shared = kind != "PReLU" or set(layer.shared_axes or ()) >= {1, 2}
    scalars = kind != "Rescaling" or np.ndim(layer.scale) == np.ndim(layer.offset) == 0
    return axis in _LAST and shared and scalars


def moved_rows(layer: Any, size: tuple[int, int]) -> np.ndarray:
    """The input position that each output position of a padding, cropping or nearest upsampling
    shows, or -1.
    """
    kind = type(layer).__name__
    positions = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    if kind == "ZeroPadding2D":
        return np.pad(positions, layer.padding, constant_values=-1).ravel()
    if kind == "Cropping2D":
        (top, bottom), (left, right) = layer.cropping
        return positions[top : size[0] - bottom, left : size[1] - right].ravel()
    return positions.repeat(layer.size[0], 0).repeat(layer.size[1], 1).ravel()
