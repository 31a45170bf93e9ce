"""Compressed layers written out in the layers and operations that Keras itself has."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.kernels.index_map import Geometry, IndexMap
from espace_tf.network import graph
from espace_tf.network.activations import activation
from espace_tf.network.copies import cloning
from espace_tf.network.copies.likeness import like
from espace_tf.network.layer_rules import COMPRESSED, rule

Call = Callable[[Any], Any]


def stock_copy(model: Any) -> Any:
    """A copy of a model in which masked, decomposed and fused layers are made of Keras's own.

    Identities that are no output are left out.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras that has been built.

    Returns:
        The new model, the last layer of what stands for a layer called as that was.
    """
    library, chains = graph.library(model), []
    containers = graph.containers(model)
    names = {layer.name for each in containers for layer in each.layers}
    shown = {id(tensor) for each in containers for tensor in each.outputs}
    calls = [call for each in containers for call in graph.nodes(each)]
    last = {id(layer) for layer, _, outputs, _ in calls if any(id(t) in shown for t in outputs)}

    def expand(layer: Any) -> Any:
        kind = rule(layer).kind
        if kind == "fused":
            return cloning.clone_expanded(layer.model, expand)
        if kind in COMPRESSED:
            chains.append(_Chain(library, layer, names))
            return chains[-1]
        passes = kind == "identity" and id(layer) not in last
        return _Chain(library, None, names) if passes else None

    made = cloning.clone_expanded(model, expand)
    for chain in chains:
        for layer, weights in chain.weights:
            cloning.assign(layer, weights)
    return made


class _Chain:
    """What stands for one layer: called one after the other; nothing for None.

    Attributes:
        weights: (layer, its weights), to be set once the layers are built.
    """

    def __init__(self, library: Any, layer: Any, names: set[str]):
        self.weights: list[tuple[Any, list[np.ndarray]]] = []
        self._library, self._layer, self._names = library, layer, names
        self._calls: list[Call] = [] if layer is None else self._written_out()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x = graph.given(args, kwargs)
        for call in self._calls:
            x = call(x)
        return x

    def _written_out(self) -> list[Call]:
        layer, layers = self._layer, self._library.layers
        maps = layer.index_maps(_least_size(layer))
        masked = any(each.geometry is None for *_, each in maps)
        # Only what is known to work position by position may stand before the positions are shown.
        apart = _is_layer(layer.activation) or (masked and activation(layer) is None)
        function = self._library.activations.linear if apart else layer.activation
        calls: list[Call] = []
        rows = False
        kernels = _kernels(layer, [(weight, index_map) for weight, _, index_map in maps])
        for number, (kernel, (*_, index_map)) in enumerate(zip(kernels, maps, strict=True), 1):
            last = number == len(maps)
            weights = [kernel]
            options = {"filters": kernel.shape[3], "use_bias": False}
            if last:
                options |= {"use_bias": layer.use_bias, "activation": function}
                weights += [np.asarray(layer.bias)] if layer.use_bias else []
            if index_map.geometry is not None:
                final = last and not apart
                calls.append(self._dense(index_map.geometry, weights, options, final))
            else:
                calls += self._gathered(index_map, weights, options, rows)
                rows = True
        if masked:
            size = (*layer.map_size, layer.filters)
            calls.append(self._make(layers.Reshape, size, final=not apart))
        if apart:
            calls.append(self._activation())
        return calls

    def _dense(self, geometry: Geometry, weights: list, options: dict, final: bool) -> Any:
        """A convolution at every position."""
        conv = self._make(
            self._library.layers.Conv2D,
            kernel_size=geometry.kernel_size,
            strides=geometry.strides,
            dilation_rate=geometry.dilation_rate,
            padding=self._layer.padding,
            groups=self._layer.groups,
            data_format="channels_last",
            final=final,
            **options,
        )
        self.weights.append((conv, weights))
        return conv

    def _gathered(
        self, index_map: IndexMap, weights: list, options: dict, rows: bool
    ) -> list[Call]:
        """A convolution of the rows that a table names, and the rows that show its results."""
        layers, (kernel, *bias) = self._library.layers, weights
        channels, filters = kernel.shape[2] * self._layer.groups, kernel.shape[3]
        count, taps = index_map.table.shape
        calls = [] if rows else [self._make(layers.Reshape, (index_map.rows_in, channels))]
        table = index_map.table
        if table.min() < 0:  # row 0 is now zeros, and -1 becomes 0
            # Else Keras 3 pads the axis of the data format that it is set to; tf_keras knows one.
            known = {"data_format": "channels_last"} if self._library.__name__ == "keras" else {}
            calls.append(self._make(layers.ZeroPadding1D, (1, 0), **known))
            table = table + 1
        calls.append(self._take(table.ravel()))
        if self._layer.groups == 1:
            calls.append(self._make(layers.Reshape, (count, taps * channels)))
            del options["filters"]
            conv = self._make(layers.Dense, filters, **options)
            weights = [kernel.reshape(-1, filters), *bias]
        else:
            calls.append(self._make(layers.Reshape, (count, taps, channels)))
            groups = {"groups": self._layer.groups, "data_format": "channels_last"}
            conv = self._make(layers.Conv2D, kernel_size=(1, taps), **groups, **options)
            weights = [kernel.reshape(1, taps, -1, filters), *bias]
        self.weights.append((conv, weights))
        calls.append(conv)
        if self._layer.groups > 1:
            calls.append(self._make(layers.Reshape, (count, filters)))
        return calls if index_map.spread is None else [*calls, self._take(index_map.spread)]

    def _take(self, indices: np.ndarray) -> Call:
        """Rows by their numbers."""
        if self._library.__name__ == "keras":
            return functools.partial(self._library.ops.take, indices=indices, axis=1)
        return functools.partial(tf.gather, indices=indices, axis=1)

    def _activation(self) -> Any:
        own = self._layer.activation
        if not _is_layer(own):
            return self._make(self._library.layers.Activation, own, final=True)
        made = like(own, name=self._layer.name)
        if own.get_weights():  # Keras 3 makes them in the first call with numbers
            self.weights.append((made, own.get_weights()))
        return made

    def _make(self, kind: type, *args: Any, final: bool = False, **options: Any) -> Any:
        """A layer of the policy of the one that it stands for, the last one of its name."""
        stem, number = f"{self._layer.name}_part", 1
        while f"{stem}{number}" in self._names:
            number += 1
        name = self._layer.name if final else f"{stem}{number}"
        self._names.add(name)
        return kind(*args, **options, name=name, dtype=self._layer.get_config()["dtype"])


def _kernels(layer: Any, links: list[tuple[str, IndexMap]]) -> list[np.ndarray]:
    """The kernels of a layer's convolutions; a second half of one channel gets another, of zeros.

    With one channel, several taps and steps of more than one TensorFlow 2.21 computes maps of one
    column from what it finds in memory, where its oneDNN runs on AVX-512.
    """
    kernels = [np.asarray(getattr(layer, weight)) for weight, _ in links]
    if layer.groups > 1 or len(links) < 2 or any(each.geometry is None for _, each in links):
        return kernels
    *before, first, second = kernels
    if second.shape[2] == 1 and second.shape[1] > 1 and links[-1][1].geometry.strides[1] > 1:
        first = np.concatenate([first, np.zeros_like(first)], axis=3)
        second = np.concatenate([second, np.zeros_like(second)], axis=2)
    return [*before, first, second]


def _is_layer(activation: Any) -> bool:
    return hasattr(activation, "get_weights")


def _least_size(layer: Any) -> tuple[int, int]:
    """Of an input that the kernel fits into: masks know their own, and nothing else needs one."""
    steps = zip(layer.kernel_size, layer.dilation_rate, strict=True)
    return tuple((taps - 1) * dilation + 1 for taps, dilation in steps)
