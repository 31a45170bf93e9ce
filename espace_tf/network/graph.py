"""Keras models as data: their layers, their convolutions and what feeds what.

Of Keras 3 and of tf_keras.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType, NoneType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.network import layer_rules

_STEPS = ("strides", "dilation_rate", "padding")


def library(model: Any, name: str = "model") -> ModuleType:
    """The module a model belongs to: keras (3) or tf_keras.

    Raises:
        TypeError: not a model of either.
    """
    for known in ("keras", "tf_keras"):
        module = keras if known == "keras" else sys.modules.get(known)
        if module is not None and isinstance(model, module.Model):
            return module
    raise TypeError(
        f"{name} must be a keras.Model or a tf_keras.Model. Received: {type(model).__name__}"
    )


def check_eager(model: Any) -> None:
    """Raises unless the numbers of a model, or of one in its place, can be read here.

    Raises:
        RuntimeError: inside a tf.function or a graph, or eager execution is switched off.
    """
    if not tf.executing_eagerly():
        raise RuntimeError(
            f"model {getattr(model, 'name', model)!r} can only be worked on in eager execution, "
            "which is off here: call this outside of tf.function and tf.Graph, and without "
            "tf.compat.v1.disable_eager_execution()"
        )


def is_container(layer: Any) -> bool:
    """Whether a layer is a Functional or Sequential model, whose inner layers can be replaced.

    A subclass with a call of its own computes something that its graph does not tell: it is none.
    """
    caller = next((base for base in type(layer).__mro__ if "call" in vars(base)), None)
    known = getattr(caller, "__name__", "") in ("Functional", "Sequential")
    return known and caller.__module__.split(".")[0] in ("keras", "tf_keras")


def layers(model: Any) -> dict[str, Any]:
    """Every layer that is not itself a Functional or Sequential model, by its path.

    The path is the names from the outermost model down, joined by "/", without the outermost one.
    A layer that stands in several places has the first path only; input layers are left out.

    Example:
        >>> list(layers(keras.Sequential([keras.layers.Dense(3, name="head")])))
        ['head']
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(container: Any, prefix: str) -> None:
        for layer in container.layers:
            if id(layer) in seen or isinstance(layer, input_layer):
                continue
            seen.add(id(layer))
            if is_container(layer):
                walk(layer, f"{prefix}{layer.name}/")
            else:
                found[prefix + layer.name] = layer

    input_layer = library(model).layers.InputLayer
    if is_container(model):
        walk(model, "")
    return found


def every_layer(model: Any) -> list[Any]:
    """All layers inside a model or a layer, those too that hang on other layers' attributes."""
    return list(model._flatten_layers(include_self=False))


def fingerprint(model: Any) -> str:
    """A hash of the architecture: input shapes, and of every layer with weights its path, class,
    shapes and steps.

    Independent of the weights' values and of the batch size.

    Example:
        >>> len(fingerprint(keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])))
        16
    """
    lines = [str([tuple(tensor.shape[1:]) for tensor in getattr(model, "inputs", None) or ()])]
    for path, layer in layers(model).items():
        if not layer.weights:  # Their names are often automatic: another one in every build.
            continue
        shapes = [tuple(weight.shape) for weight in layer.weights]
        names = _STEPS if layer_rules.kin(layer).convolution else ()
        lines.append(
            f"{path} {type(layer).__name__} {shapes} {[getattr(layer, name) for name in names]}"
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def single_consumers(model: Any) -> list[tuple[str, str]]:
    """Pairs (producer, consumer) of layers called once each, where only that consumer reads.

    Paths as in `layers`. Used to fold what follows a layer into its weights.
    """
    paths = {id(layer): path for path, layer in layers(model).items()}
    times: Counter[int] = Counter()
    pairs = []
    for container in containers(model):
        found = nodes(container)
        readers: dict[int, list[Any]] = {id(tensor): [None] for tensor in container.outputs}
        for layer, inputs, _, _ in found:
            times[id(layer)] += 1
            for tensor in inputs:
                readers.setdefault(id(tensor), []).append(layer)
        for layer, _, outputs, _ in found:
            reading = readers.get(id(outputs[0]), []) if len(outputs) == 1 else []
            if len(reading) == 1:
                pairs.append((layer, reading[0]))
    return [
        (paths[id(producer)], paths[id(consumer)])
        for producer, consumer in pairs
        if {id(producer), id(consumer)} <= paths.keys()
        and times[id(producer)] == times[id(consumer)] == 1
    ]


def trained(model: Any) -> set[str]:
    """Paths of the layers that the graph calls with training=True, also at inference."""
    paths = {id(layer): path for path, layer in layers(model).items()}
    found: set[str] = set()
    for container in containers(model):
        for layer, _, _, training in nodes(container):
            if training:
                inside = layers(layer).values() if is_container(layer) else [layer]
                found |= {paths[id(each)] for each in inside if id(each) in paths}
    return found


def containers(model: Any) -> list[Any]:
    """The model and all models inside it, each once."""
    found: dict[int, Any] = {}

    def walk(container: Any) -> None:
        if id(container) not in found:
            found[id(container)] = container
            for layer in container.layers:
                if is_container(layer):
                    walk(layer)

    if is_container(model):
        walk(model)
    return list(found.values())


def calls(container: Any) -> list[Any]:
    """The library's own nodes of every call, in order of execution; none of what is not built."""
    functional = getattr(container, "_functional", None) or container
    by_depth = getattr(functional, "_nodes_by_depth", None) or {}
    nodes = (node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth])
    return [node for node in nodes if not node.is_input]


def nodes(container: Any) -> list[tuple[Any, list[Any], list[Any], bool]]:
    """(layer, inputs, outputs, called with training=True) of every call, in order of execution."""
    found = []
    for node in calls(container):
        if hasattr(node, "operation"):
            layer, kwargs = node.operation, node.arguments.kwargs
            inputs, outputs = node.input_tensors, node.output_tensors
        else:
            layer, kwargs = node.layer, node.call_kwargs
            inputs, outputs = list(node.keras_inputs), tf.nest.flatten(node.outputs)
        found.append((layer, inputs, outputs, kwargs.get("training") is True))
    return found


def number(operation: Any) -> tuple[float | None, bool]:
    """The plain number that an operation of a graph computes with, and whether it comes first.

    Returns:
        (None, False) where there is none: both arguments are tensors, or one is an array; or where
        the operation is called several times.
    """
    calls = operation._inbound_nodes
    arguments = calls[0].arguments.args if len(calls) == 1 else ()
    if len(arguments) != 2 or calls[0].arguments.kwargs:
        return None, False
    for argument, first in ((arguments[0], True), (arguments[1], False)):
        if isinstance(argument, (int, float, np.number)) and not isinstance(argument, bool):
            return float(argument), first
    return None, False


def is_sparse(tensor: Any) -> bool:
    """Whether a symbolic tensor of Keras 3 stands for sparse ones.

    Keras says so of a dense tensor times a number, too: what a known layer or operation makes of
    dense tensors is dense.
    """
    if not tensor.sparse:
        return False
    history = tensor._keras_history
    given = history.operation._inbound_nodes[history.node_index].input_tensors
    known = given and layer_rules.rule(history.operation) is not layer_rules.UNKNOWN
    return any(map(is_sparse, given)) if known else True


def input_name(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The keyword of what a layer is called on; None where that is its first argument.

    By keyword everything may come in any order: it is the first one that is neither None nor a flag
    such as training.
    """
    if args:
        return None
    values = [name for name, each in kwargs.items() if not isinstance(each, bool | NoneType)]
    return next(iter(values or kwargs))


def given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a layer is called on."""
    return args[0] if args else kwargs[input_name(args, kwargs)]


def has_mask(tensor: Any) -> bool:
    """Whether a symbolic tensor of Keras 3 carries a mask, which layers that read it may heed."""
    return getattr(tensor, "_keras_mask", None) is not None


def is_half(model: Any) -> bool:
    """Whether a layer computes in float16, where small gradients are lost."""
    return any(layer.compute_dtype == "float16" for layer in layers(model).values())


def structure(model: Any, side: str) -> Any:
    """A model's inputs or outputs as it takes or gives them: a tensor, a list or a dictionary."""
    if isinstance(model, library(model).Sequential):
        return getattr(model, f"{side}s")[0]
    return getattr(model, side)


def input_names(model: Any) -> list[str]:
    """The names of a model's input layers, in the order of `model.inputs`; a clone has the same."""
    if library(model) is keras:
        return [tensor._keras_history.operation.name for tensor in model.inputs]
    return [tensor.name.split(":")[0] for tensor in model.inputs]


def call(model: Any, inputs: Any) -> list[tf.Tensor]:
    """Outputs of a model at inference, in the order of `model.outputs`."""
    structured = tf.nest.pack_sequence_as(structure(model, "input"), list(inputs))
    return tf.nest.flatten(model(structured, training=False))


def forward(model: Any, x: Any) -> Any:
    """What a model computes of a batch of data at inference, as it gives it."""
    return model(taken(model, x), training=False)


def taken(model: Any, x: Any) -> Any:
    """A batch of one array as a model takes it: alone, in a list or in a dictionary.

    Keras warns at every call of another form.
    """
    given = tf.nest.flatten(x)
    if len(given) != 1 or len(getattr(model, "inputs", None) or ()) != 1:
        return x
    return tf.nest.pack_sequence_as(structure(model, "input"), given)


def compiled_loss(model: Any) -> tuple[Any, Any]:
    """The loss and the loss_weights that `compile` was given, as they were given; None if none."""
    loss = getattr(model, "loss", None)
    if all(each is None for each in tf.nest.flatten(loss)):
        return None, None
    held = getattr(model, "_compile_loss", None) or getattr(model, "compiled_loss", None)
    return loss, getattr(held, "_user_loss_weights", None)
