"""Copies of Keras models with some layers replaced; the original is never touched."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from espace_tf import graph

Replace = Callable[[str, Any], Any | None]


def clone(model: Any, replace: Replace) -> Any:
    """A copy of a model, weights and compile state included, with some layers replaced.

    Names, nesting, sharing, trainable flags and dtype policies stay. A layer used in several places
    is asked for and replaced once.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras.
        replace: called as replace(path, layer) for every layer of `graph.layers(model)`; returns
            a new layer to stand in its place, whose weights the caller sets, or None.

    Returns:
        The new model, of the same library.

    Raises:
        ValueError: a subclassed model, or a layer that cannot be rebuilt from its config.
    """
    library = graph.library(model)
    if not graph.is_container(model):
        raise ValueError(
            f"model must be Functional or Sequential. Received: {type(model).__name__}, a "
            "subclassed model, whose layers cannot be replaced; build it with the functional API"
        )
    paths = {id(layer): path for path, layer in graph.layers(model).items()}
    replaced = set()

    def make(layer: Any) -> Any:
        path = paths.get(id(layer))
        new = None if path is None else replace(path, layer)
        if new is not None:
            replaced.add(path)
            return new
        return _rebuild(layer)

    copy = _clone(library, model, make, {}, outermost=True)
    _copy_state(model, copy, replaced)
    return copy


def _rebuild(layer: Any) -> Any:
    """A fresh layer of the same config; the functions of Lambda layers are taken as they are."""
    if type(layer).__name__ == "Lambda" and hasattr(layer, "function"):
        config = layer.get_config()
        names = ("name", "dtype", "trainable")
        return type(layer)(
            layer.function,
            output_shape=getattr(layer, "_output_shape", None),
            arguments=layer.arguments,
            **{name: config[name] for name in names if name in config},
        )
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be rebuilt from its config: "
            f"{error}. Give it a complete get_config, as Keras needs to save it too"
        ) from error


def _clone(
    library: Any, model: Any, make: Callable, cache: dict[int, Any], outermost: bool = False
) -> Any:
    """Clones a container; `cache` keeps what stands in several places shared."""

    def clone_function(layer: Any) -> Any:
        if id(layer) not in cache:
            nested = graph.is_container(layer)
            cache[id(layer)] = _clone(library, layer, make, cache) if nested else make(layer)
        return cache[id(layer)]

    options = {"clone_function": clone_function}
    if library.__name__ == "keras" and not isinstance(model, library.Sequential):
        options["call_function"] = _call
        options["input_tensors"] = _input_tensors(library, model) if outermost else None
    copy = library.models.clone_model(model, **options)
    if model.inputs and not copy.built:
        copy.build(model.input_shape)
    return copy


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """An identity in the place of another layer takes none of that layer's further arguments."""
    return layer(args[0]) if type(layer).__name__ == "Identity" else layer(*args, **kwargs)


def _input_tensors(library: Any, model: Any) -> Any:
    """New inputs of the same names; clone_model itself would rename unnamed ones."""
    return library.tree.map_structure(
        lambda tensor: library.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=tensor._keras_history.operation.name,
        ),
        model.input,
    )


def _copy_state(model: Any, copy: Any, replaced: set[str]) -> None:
    """Weights, states of random generators and the trainable flags of the models themselves."""
    old, new = graph.layers(model), graph.layers(copy)
    for path, layer in old.items():
        if path in replaced:
            continue
        for source, target in zip(layer.variables, new[path].variables, strict=True):
            target.assign(source)
    for source, target in zip(graph.containers(model), graph.containers(copy), strict=True):
        target._trainable = source._trainable
    if hasattr(model, "optimizer") and graph.library(model).__name__ == "tf_keras":
        _copy_compilation(model, copy)


def _copy_compilation(model: Any, copy: Any) -> None:
    """tf_keras's clone is not compiled; Keras 3's is."""
    if model.optimizer is not None and getattr(model, "_is_compiled", False):
        copy.compile_from_config(model.get_compile_config())


def assign(layer: Any, weights: list[Any]) -> None:
    """Sets all weights of a layer, None entries left out.

    Raises:
        ValueError: shapes that do not fit, naming the layer.
    """
    given = [tf.convert_to_tensor(weight) for weight in weights if weight is not None]
    wanted = [tuple(weight.shape) for weight in layer.weights]
    if [tuple(weight.shape) for weight in given] != wanted:
        raise ValueError(
            f"the weights of layer {layer.name!r} must have the shapes {wanted}. Received: "
            f"{[tuple(weight.shape) for weight in given]}"
        )
    layer.set_weights([weight.numpy() for weight in given])
