"""Models rebuilt with packed regions: what lies between masked convolutions runs on rows only."""

from typing import Any

import keras

from espace_tf import cloning, graph
from espace_tf.keras_layers import GatherRows, PackedGlobalAveragePooling2D, PackedPooling2D
from espace_tf.regions import Step, regions
from espace_tf.topology import Topology, topologies

_POOLINGS = {"MaxPooling2D": "max", "AveragePooling2D": "average"}


def pack(model: Any) -> Any:
    """A copy of a compressed model in which masked convolutions hand their computed rows on.

    Between them the map, in which every position shows a computed row, is written only where a
    layer needs it; batch norms, activations, 1 x 1 convolutions, poolings and so on run on the
    rows. At inference the outputs are those of the model, to float rounding. In training, batch
    norms take the statistics of the rows, each counted once, and dropout drops rows.

    Args:
        model: a Functional or Sequential Keras 3 model, as `apply` returns it without packing.
            A tf_keras model comes back as an unchanged copy: its library cannot insert layers.

    Returns:
        The new model: layers of the same paths, and layers that gather rows between some of them.

    Example:
        >>> packed = pack(apply(model, dataclasses.replace(plan, packed=False)))
    """
    if graph.library(model).__name__ != "keras":
        made = cloning.clone(model, lambda path, layer: None)
        return _with_plan(made, model)
    known = graph.layers(model)
    steps: dict[str, Step] = {}
    inserted: dict[str, list[Any]] = {}
    for topology in topologies(model):
        found = regions(topology.nodes, topology.sizes, topology.outputs)
        inserted |= _gatherers(topology, found)
        steps |= found
    made = cloning.clone(
        model,
        lambda path, layer: _replaced(layer, steps.get(path)),
        lambda path: inserted.get(path),
    )
    new = graph.layers(made)
    for path, step in steps.items():
        if step.packing is not None:
            new[path].set_weights(known[path].get_weights())
    return _with_plan(made, model)


def _with_plan(made: Any, model: Any) -> Any:
    if hasattr(model, "espace_plan"):
        made.espace_plan = model.espace_plan
    return made


def is_packed(model: Any) -> bool:
    """Whether a model has packed regions."""
    return any(getattr(layer, "packing", None) for layer in graph.layers(model).values())


def _gatherers(topology: Topology, steps: dict[str, Step]) -> dict[str, list[Any]]:
    """The layers to insert before the inputs of each layer; one gathering is one layer."""
    made: dict[int, Any] = {}
    found: dict[str, list[Any]] = {}
    for node in topology.nodes:
        gathers = steps[node.name].gathers if node.name in steps else ()
        for index, (tensor, gather) in enumerate(zip(node.inputs, gathers, strict=False)):
            if gather is not None and id(gather) not in made:
                name = f"{node.name.split('/')[-1]}_rows_{index}"
                made[id(gather)] = GatherRows(
                    gather.rows, gather.size, name=name, dtype=topology.dtypes[tensor]
                )
        if any(gathers):
            found[node.name] = [made.get(id(gather)) for gather in gathers]
    return found


def _replaced(layer: Any, step: Step | None) -> Any | None:
    """The layer of a packed region in the place of another; None: that one stays."""
    if step is None:
        return None
    options = {"name": layer.name, "dtype": layer.get_config()["dtype"]}
    if step.packing is not None:
        config = {**layer.get_config(), "packing": step.packing}
        return type(layer).from_config(config)
    if step.table is not None:
        size = None if step.spread is None else layer.output.shape[1:3]
        pooling = _POOLINGS[type(layer).__name__]
        return PackedPooling2D(pooling, step.table, None, step.spread, size, **options)
    if step.shown is not None:
        return PackedGlobalAveragePooling2D(step.shown, layer.keepdims, **options)
    if step.moved:
        return keras.layers.Identity(**options)
    return None
