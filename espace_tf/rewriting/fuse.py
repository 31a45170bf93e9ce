"""Models rebuilt with fused stretches: what one native operation can run becomes one layer."""

import itertools
from collections import Counter
from typing import Any

import keras

from espace_tf.keras_layers import FusedGraph
from espace_tf.network import graph
from espace_tf.network.copies import cloning
from espace_tf.network.layer_rules import rule
from espace_tf.rewriting.lower import lower
from espace_tf.rewriting.pieces import is_large, pieces

# What a call becomes part of: nothing, a stretch that takes a few images at a time through all of
# its layers, or one of dense layers that takes all images through each of them.
_NONE, _MAPS, _ROWS = range(3)


def fuse(model: Any, *, large: bool = True) -> Any:
    """A copy of a model in which each stretch that one operation can run is one `FusedGraph`.

    At inference the outputs are those of the model, to float rounding; in training and in exported
    files the layers run one by one, as before. Convolutions, dense layers, poolings, activations,
    sums, products, concatenations, normalizations and what moves rows or channels go into a
    stretch, in float32, channels last, on maps of known size and without masks of sequences
    (`rewriting.pieces` says which of them exactly); a stretch holds one convolution at least.

    Args:
        model: a Functional or Sequential Keras 3 model that has been built. A tf_keras model comes
            back as an unchanged copy.

    Returns:
        The new model. The path of a layer of a stretch is gone from `graph.layers`: it is a layer
        of the stretch's `model`.

    Raises:
        ValueError: a model with a call of its own, or a layer that its config cannot rebuild.

    Example:
        >>> fused = fuse(strip(small, fuse=False))
    """
    if graph.library(model).__name__ != "keras" or not graph.is_container(model):
        return cloning.clone(model, lambda path, layer: None)  # or an error in words
    times = Counter(
        id(layer) for container in graph.containers(model) for layer, *_ in graph.nodes(container)
    )
    made = cloning.clone_in_stretches(model, lambda each: _stretches(each, times, large), _wrap)
    if hasattr(model, "espace_plan"):
        made.espace_plan = model.espace_plan
    return made


def check_not_fused(model: Any) -> None:
    """Raises ValueError for a model with fused graphs: what is inside is out of reach."""
    fused = [path for path, layer in graph.layers(model).items() if isinstance(layer, FusedGraph)]
    if fused:
        raise ValueError(
            "model must be one that strip has not made ready for deployment. Received: "
            f"{model.name!r} with the fused graph {fused[0]!r}; train or compress the model that "
            "strip was given, and strip what comes of it"
        )


def _wrap(inner: keras.Model) -> FusedGraph:
    return FusedGraph(inner, *lower(inner), name=inner.name)


def _stretches(
    container: Any, times: dict[int, int], large: bool
) -> list[tuple[list[int], str | None]]:
    """The calls of a container in an order in which they can run, fused or not.

    Args:
        times: how often each layer is called in the whole model, by its number.
    """
    calls = graph.nodes(container)
    found = [
        None if training or (is_large(layer) and not large) else pieces(layer, inputs, outputs)
        for layer, inputs, outputs, training in calls
    ]
    levels = _levels(calls, found, times)
    order: list[tuple[list[int], str | None]] = []
    taken = {layer.name for layer in container.layers}
    for level in sorted(set(levels)):
        indices = [index for index, own in enumerate(levels) if own == level]
        first = next((i for i in indices if found[i] and _is_worth(calls[i][0])), None)
        worth = level % 3 != _NONE and first is not None
        name = _free(f"fused_{calls[first][0].name}", taken) if worth else None
        order.append((indices, name))
    return order


def _is_worth(layer: Any) -> bool:
    """Whether a layer alone would be a stretch."""
    return rule(layer).convolution or is_large(layer)


def _free(name: str, taken: set[str]) -> str:
    """The name, or it with a number, that is not taken; now it is."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    found = next(each for each in itertools.chain([name], numbered) if each not in taken)
    taken.add(found)
    return found


def _levels(calls: list, found: list, times: dict[int, int]) -> list[int]:
    """A number for each call, modulo 3 what it becomes part of; none reads from a later one.

    Calls of one number that are fused are one stretch: a path that leaves it and comes back would
    pass through a number between. Calls of one layer must all be in one, else they stay as
    they are: its weights cannot be in two.
    """
    barred: set[int] = set()
    while True:
        reached: dict[int, int] = {}
        levels, homes = [], {}
        for (layer, inputs, outputs, _), one in zip(calls, found, strict=True):
            before = max((reached.get(id(tensor), 0) for tensor in inputs), default=0)
            kind = _NONE
            if one is not None and id(layer) not in barred:
                flat = all(len(tensor.shape) == 2 for tensor in [*inputs, *outputs])
                kind = _ROWS if is_large(layer) or (flat and before % 3 == _ROWS) else _MAPS
            levels.append(before + (kind - before) % 3)
            reached.update((id(tensor), levels[-1]) for tensor in outputs)
            if kind != _NONE:
                homes.setdefault(id(layer), []).append(levels[-1])
        torn = {key for key, own in homes.items() if len(set(own)) > 1 or len(own) != times[key]}
        if not torn:
            return levels
        barred |= torn
