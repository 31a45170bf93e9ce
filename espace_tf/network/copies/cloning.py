"""Copies of Keras models with some layers replaced; the original is never touched."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from espace_tf.checks import warn
from espace_tf.config import EspaceWarning
from espace_tf.network import graph
from espace_tf.network.copies.likeness import again

Replace = Callable[[str, Any], Any | None]  # also a list of layers, one after the other
Divide = Callable[[Any], Sequence[tuple[Sequence[int], str | None]]]


def clone(model: Any, replace: Replace, *, compiled: bool = True) -> Any:
    """A copy of a model, weights and compile state included, with some layers replaced.

    Names, nesting, sharing, trainable flags and dtype policies stay. A layer used in several places
    is asked for and replaced once. A model of a class without an `__init__` of its own keeps that
    class and what was set on it; others become the library's Functional or Sequential, see
    `left_behind`.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras.
        replace: called as replace(path, layer) for every layer of `graph.layers(model)`; returns
            a new layer to stand in its place, or in Keras 3 a list of layers, whose weights the
            caller sets, or None.
        compiled: whether the copy is compiled as the model is.

    Returns:
        The new model, of the same library.

    Raises:
        ValueError: a model with a call of its own, or a layer that its config cannot rebuild.
    """
    library = graph.library(model)
    if not graph.is_container(model):
        raise ValueError(
            f"model must be Functional or Sequential. Received: {type(model).__name__}, with a call"
            " of its own, so that its layers cannot be replaced; build it with the functional API"
        )
    paths = {id(layer): path for path, layer in graph.layers(model).items()}
    replaced = set()

    def make(layer: Any) -> Any:
        path = paths.get(id(layer))
        new = None if path is None else replace(path, layer)
        if new is not None:
            replaced.add(path)
            return new
        return again(layer)

    copy = _clone(library, model, make, {})
    _copy_state(model, copy, replaced)
    if compiled and getattr(model, "_compile_config", None) is not None:
        _copy_compilation(model, copy)
    if type(copy) is type(model) and not type(model).__module__.startswith(library.__name__ + "."):
        _copy_attributes(model, copy)
    return copy


def left_behind(model: Any, copy: Any) -> list[str]:
    """What the class of a model defines and a copy of another class does not have.

    Example:
        >>> left_behind(distiller, clone(distiller, lambda path, layer: None))
        ['compute_loss', 'train_step']
    """
    own = set(type(model).__mro__) - set(type(copy).__mro__)
    names = {name for each in own for name in vars(each) if not name.startswith("_")}
    return sorted(names - {"get_config", "from_config", "call", "build"})


def private_copy(model: Any) -> Any:
    """A copy of a model to work on, not compiled: what runs, hooks or changes it harms nobody.

    Args:
        model: as in `clone`.
    """
    return clone(model, lambda path, layer: None, compiled=False)


def _clone(library: Any, model: Any, make: Callable, cache: dict[int, Any]) -> Any:
    """Clones a container; `cache` keeps what stands in several places shared."""

    def clone_function(layer: Any) -> Any:
        if id(layer) not in cache:
            nested = graph.is_container(layer)
            cache[id(layer)] = _clone(library, layer, make, cache) if nested else make(layer)
        return cache[id(layer)]

    if library.__name__ == "keras":
        return _clone_keras(library, model, clone_function)
    copy = library.models.clone_model(model, clone_function=clone_function)
    if getattr(model, "inputs", None) and not copy.built:
        copy.build(model.input_shape)
    return copy


def _clone_keras(library: Any, model: Any, clone_function: Callable) -> Any:
    """Keras 3's clone_model but for two things: it would rename unnamed inputs, and it would
    compile the copy from a serialized config, which no unregistered loss survives.
    """
    if isinstance(model, library.Sequential):
        inputs = [input_like(library, tensor) for tensor in getattr(model, "inputs", None) or ()]
        inside = [each for layer in model.layers for each in _several(clone_function(layer))]
        return _class(model, "Sequential")([*inputs, *inside], name=model.name)
    inputs = library.tree.map_structure(lambda tensor: input_like(library, tensor), model.input)
    outputs = model._run_through_graph(inputs, operation_fn=clone_function, call_fn=_call)
    return _class(model, "Functional")(inputs, outputs, name=model.name)


def _class(model: Any, base: str) -> type:
    """The model's class, or the library's own where the constructor takes other arguments."""
    library_class = next(each for each in type(model).__mro__ if each.__name__ == base)
    same = type(model).__init__ is library_class.__init__
    return type(model) if same else library_class


def input_like(library: Any, tensor: Any) -> Any:
    """An input of a library's graph like the one that a symbolic tensor comes from."""
    history = tensor._keras_history
    layer = history.operation if hasattr(history, "operation") else history.layer
    if library.__name__ == "tf_keras":
        return library.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name)
    made = library.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        name=layer.name,
        optional=layer.optional,
    )
    made._keras_history.operation.dtype_policy = layer.dtype_policy  # not that of today
    return made


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """An identity in the place of another layer takes none of its further arguments."""
    first, *others = _several(layer)
    alone = type(first).__name__ == "Identity"
    value = first(graph.given(args, kwargs)) if alone else first(*args, **kwargs)
    for each in others:
        value = each(value)
    return value


def _several(layer: Any) -> list[Any]:
    return layer if isinstance(layer, list) else [layer]


def clone_with(model: Any, replace: Callable, weights: dict[str, list[Any]]) -> Any:
    """`clone`, with the weights of the layers that stand in for others: by path, see `assign`."""
    made = clone(model, replace)
    new = graph.layers(made)
    for path, values in weights.items():
        assign(new[path], values)
    return made


def clone_in_stretches(model: Any, divide: Divide, wrap: Callable[[Any], Any]) -> Any:
    """A copy of a Keras 3 model, weights included, with stretches of its graph as one layer each.

    Every layer keeps its name, and stands where it stood or in the one model that is wrapped.

    Args:
        model: a Functional or Sequential model that has been built.
        divide: called with every container; returns stretches of its calls, as indices into
            `graph.nodes(container)` in an order in which they can run, each with the name of the
            model that it is to become, or None where its calls stay as they are.
        wrap: makes the layer of such a model.

    Returns:
        The new model, compiled as the model was.
    """
    library, cache = graph.library(model), {}

    def make(layer: Any) -> Any:
        if id(layer) not in cache:
            nested = graph.is_container(layer)
            new = _divided(library, layer, make, divide, wrap) if nested else again(layer)
            cache[id(layer)] = layer, new
        return cache[id(layer)][1]

    copy = make(model)
    for source, target in cache.values():
        if graph.is_container(source):
            target._trainable = source._trainable
        else:
            _copy_layer(source, target)
    if getattr(model, "_compile_config", None) is not None:
        _copy_compilation(model, copy)
    return copy


def clone_expanded(model: Any, expand: Callable[[Any], Callable | None]) -> Any:
    """A copy of a model as Functional ones, weights included, in which a layer may become several.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras that has been built.
        expand: called as expand(layer), once for each layer; returns what is to be called with the
            layer's inputs in its place, whose weights the caller sets, or None.

    Returns:
        The new model, not compiled.

    Raises:
        ValueError: a model that has not been built, or a layer that its config cannot rebuild.
    """
    library, cache, kept = graph.library(model), {}, []

    def make(layer: Any) -> Any:
        if id(layer) not in cache:
            new = rebuilt(layer, library, make) if graph.is_container(layer) else expand(layer)
            if new is None:
                new = again(layer)
                kept.append((layer, new))
            cache[id(layer)] = new
        return cache[id(layer)]

    made = make(model)
    for source, target in kept:
        _copy_layer(source, target)
    return made


def rebuilt(model: Any, library: Any, make: Callable[[Any], Any]) -> Any:
    """A Functional model that calls what `make` gives for each layer, as that layer is called.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras.
        library: the new model's.
        make: called with each layer, once for every call.

    Raises:
        ValueError: the model has not been built.
    """
    calls = graph.calls(model)
    if not (calls or model.built):  # an identity has no calls
        raise ValueError(f"model {model.name!r} must have been built: call it on data first")
    inputs, made = _begun(model, library)
    _run(calls, made, make)
    return library.Model(inputs, _outputs(model, made), name=model.name)


def _begun(model: Any, library: Any) -> tuple[Any, dict[int, Any]]:
    """New inputs like a model's, and the same by the numbers of the model's."""
    given = graph.structure(model, "input")
    inputs = tf.nest.map_structure(lambda tensor: input_like(library, tensor), given)
    pairs = zip(model.inputs, tf.nest.flatten(inputs), strict=True)
    return inputs, {id(old): new for old, new in pairs}


def _outputs(model: Any, made: dict[int, Any]) -> Any:
    """The new tensors in the place of a model's outputs."""
    return tf.nest.map_structure(lambda each: made[id(each)], graph.structure(model, "output"))


def _divided(library: Any, model: Any, make: Callable, divide: Divide, wrap: Callable) -> Any:
    """The container of `clone_in_stretches`, for one of them."""
    calls = graph.calls(model)
    if not calls:  # not built: nothing is known of it
        return _clone_keras(library, model, make)
    inputs, made = _begun(model, library)
    layers = []
    for indices, name in divide(model):
        chosen = [calls[index] for index in indices]
        if name is None:
            _run(chosen, made, make)
            layers += [make(call.operation) for call in chosen]
        else:
            layers.append(
                _run_wrapped(library, name, chosen, calls, model.outputs, made, make, wrap)
            )
    if isinstance(model, library.Sequential):
        return _class(model, "Sequential")([inputs, *layers], name=model.name)
    return _class(model, "Functional")(inputs, _outputs(model, made), name=model.name)


def _run(calls: list[Any], made: dict[int, Any], make: Callable) -> None:
    """Calls the new layers on the new tensors, which `made` has by the number of the old one."""
    for call in calls:
        if hasattr(call, "operation"):
            layer, (args, kwargs) = call.operation, call.arguments.fill_in(made)
        else:  # tf_keras takes each tensor from a list, one for every call that reads it
            shown = {str(key): _Endless(tensor) for key, tensor in made.items()}
            layer, (args, kwargs) = call.layer, call.map_arguments(shown)
        outputs = tf.nest.flatten(make(layer)(*args, **kwargs))
        before = tf.nest.flatten(call.outputs)
        made.update((id(old), new) for old, new in zip(before, outputs, strict=True))


class _Endless:
    """A list that never gets shorter, of one thing."""

    def __init__(self, value: Any):
        self.value = value

    def pop(self) -> Any:
        """The thing."""
        return self.value


def _run_wrapped(library, name, chosen, calls, outputs, made, make, wrap) -> Any:
    """Makes a model of some calls, wraps it, calls what that gives; returns it."""
    written = {id(tensor): tensor for call in chosen for tensor in call.outputs}
    read = {id(tensor): tensor for call in chosen for tensor in call.input_tensors}
    inside = set(map(id, chosen))
    outside = {id(tensor) for tensor in outputs}
    outside |= {id(t) for call in calls if id(call) not in inside for t in call.input_tensors}
    entering = [tensor for key, tensor in read.items() if key not in written]
    leaving = [key for key in written if key in outside]
    fresh = [library.Input(batch_shape=t.shape, dtype=t.dtype) for t in entering]
    inner = {id(old): new for old, new in zip(entering, fresh, strict=True)}
    _run(chosen, inner, make)

    def single(values: list[Any]) -> Any:
        return values[0] if len(values) == 1 else values

    layer = wrap(library.Model(single(fresh), single([inner[key] for key in leaving]), name=name))
    shown = tf.nest.flatten(layer(single([made[id(tensor)] for tensor in entering])))
    made.update(zip(leaving, shown, strict=True))
    return layer


def _copy_state(model: Any, copy: Any, replaced: set[str]) -> None:
    """Weights, states of random generators and the trainable flags of the models themselves."""
    new = graph.layers(copy)
    for path, layer in graph.layers(model).items():
        if path not in replaced:
            _copy_layer(layer, new[path])
    for source, target in zip(graph.containers(model), graph.containers(copy), strict=True):
        target._trainable = source._trainable


def _copy_layer(layer: Any, copy: Any) -> None:
    """Weights and states of random generators; operations of a graph have none."""
    pairs = (getattr(each, "variables", ()) for each in (layer, copy))
    for source, target in zip(*pairs, strict=True):
        target.assign(source)
    if hasattr(copy, "finalize_state"):  # Normalization reads constants made of weights
        copy.finalize_state()


def _copy_attributes(model: Any, copy: Any) -> None:
    """What a user set on a model of a class of theirs; without variables of its own, and models."""
    library, new = graph.library(model), graph.layers(copy)
    layers = {id(layer): new[path] for path, layer in graph.layers(model).items()}

    def moved(value: Any) -> Any:
        return layers[id(value)] if id(value) in layers else _fresh(value)

    def bound(value: Any) -> bool:
        foreign = isinstance(value, library.layers.Layer) and id(value) not in layers
        metric = isinstance(value, library.metrics.Metric)
        return (foreign and not metric) or hasattr(value, "assign")

    for name in vars(model).keys() - vars(copy).keys() - {"history"}:
        value = vars(model)[name]
        if not name.startswith("_") and not any(map(bound, tf.nest.flatten(value))):
            setattr(copy, name, tf.nest.map_structure(moved, value))


def _fresh(value: Any) -> Any:
    """A metric or optimizer of the same config, anything else as it is."""
    stateful = hasattr(value, "get_config") and hasattr(value, "variables")
    return type(value).from_config(value.get_config()) if stateful else value


def _copy_compilation(model: Any, copy: Any) -> None:
    """Compiles the copy like the model: same losses, an optimizer and metrics of the same config.

    Moments of the optimizer are not copied: they may be of weights that were replaced.
    """
    arguments = {**model._compile_config.config, "optimizer": model.optimizer}
    try:
        copy.compile(**tf.nest.map_structure(_fresh, arguments))
    except Exception as error:
        warn(
            f"the new model {copy.name!r} is not compiled: the optimizer or a metric cannot be "
            f"rebuilt from its config ({error}). Call compile on it before fit or evaluate",
            EspaceWarning,
        )


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
