"""Calls of layers, recorded while a model runs: the only place where hooks stand on layers."""

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from espace_tf.network.copies import cloning
from espace_tf.network.graph import call as call_model
from espace_tf.network.graph import given, input_name, is_container, layers, nodes, structure

_TRACED = ("train_function", "test_function", "predict_function", "train_tf_function")


@dataclass(frozen=True)
class Call:
    """One call of a layer: its path, what went in and what came out (tensors or nests).

    Replicas of a model call its layers side by side, each in a thread: `thread` tells which one.
    """

    path: str
    inputs: Any
    outputs: Any
    thread: int = field(default_factory=threading.get_ident, compare=False)


# One recording at a time: hooks stand on the layers themselves, where every thread sees them.
_RECORDING = threading.RLock()


@contextlib.contextmanager
def record(
    model: Any,
    paths: Iterable[str],
    replace: Callable[[str, Any, Any, Callable[[Any], Any]], Any] | None = None,
) -> Iterator[list[Call]]:
    """While open, every call of these layers, eager or traced, is appended to the yielded list.

    Another thread that wants to record waits until this recording is closed.
    `predict`, `evaluate` and `fit` are traced anew inside, and what they traced before is put back.

    Args:
        model: a Keras model; afterwards it is as it was.
        paths: of `layers(model)`.
        replace: called as replace(path, layer, inputs, original), where original(inputs) is the
            layer's own result; what it returns takes the result's place.

    Raises:
        ValueError: a path that is not in the model.

    Example:
        >>> with record(model, ["conv1"]) as calls:
        ...     model(images)
        >>> calls[0].outputs.shape
        TensorShape([24, 8, 8, 8])
    """
    wanted, calls, undo = _known(model, paths), [], []
    _RECORDING.acquire()
    traced = {name: vars(model)[name] for name in _TRACED if name in vars(model)}
    try:
        for name in traced:
            object.__setattr__(model, name, None)
        for path, layer in wanted.items():
            undo.append((layer, vars(layer).get("call")))
            hook = _hook(path, layer, layer.call, replace, calls)
            object.__setattr__(layer, "call", hook)
        yield calls
    finally:
        for layer, before in reversed(undo):
            vars(layer).pop("call", None)
            if before is not None:
                object.__setattr__(layer, "call", before)
        for name, function in traced.items():
            object.__setattr__(model, name, function)
        _RECORDING.release()


def _hook(path: str, layer: Any, original: Callable, replace: Callable | None, calls: list[Call]):
    def call(*args, **kwargs):
        name, inputs = input_name(args, kwargs), given(args, kwargs)

        def own(values):
            if name is None:
                return original(values, *args[1:], **kwargs)
            return original(**{**kwargs, name: values})

        outputs = own(inputs) if replace is None else replace(path, layer, inputs, own)
        calls.append(Call(path, inputs, outputs))
        return outputs

    return call


def trace(model: Any, paths: Iterable[str]) -> list[Call]:
    """The calls of these layers in the model's graph, as symbolic tensors, in execution order.

    They are read off the graph; nothing runs. Only a model inside that is called on another shape
    than it was built for does not tell what its layers see there: then a copy is traced.

    Raises:
        ValueError: the model has not been built: its input shape is unknown; or a path that is not
            in the model.
    """
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"model {model.name!r} has no input shape yet: give it an Input, or call it once"
        )
    wanted = {id(layer): path for path, layer in _known(model, paths).items()}
    found = _calls(model, wanted) if wanted else []
    return _traced_calls(cloning.private_copy(model), wanted.values()) if found is None else found


def called_once(model: Any, paths: Iterable[str]) -> list[str]:
    """Those of the paths whose layers have one call in the model's graph."""
    paths = list(paths)
    times = Counter(call.path for call in trace(model, paths))
    return [path for path in paths if times[path] == 1]


def run_at(model: Any, paths: Iterable[str], size: tuple[int, int]) -> list[Call]:
    """The calls of these layers for one batch of zeros, whose maps all have a known size.

    Args:
        model: a Keras model with known inputs; it is hooked while it runs.
        paths: of `layers(model)`.
        size: (H, W) of inputs whose size the model leaves open.

    Raises:
        ValueError: the model does not run at that size.
    """
    inputs = []
    for tensor in model.inputs:
        batch, *shape = tensor.shape
        pairs = itertools.zip_longest(shape, size[: len(shape)])
        shape = [other if known is None else known for known, other in pairs]
        inputs.append(tf.zeros([batch or 1, *shape], tensor.dtype))
    try:
        with record(model, paths) as calls:
            call_model(model, inputs)
    except Exception as error:  # Each library raises its own kinds.
        raise ValueError(
            f"input_size must be a size that model {model.name!r} takes. Received: {size}: {error}"
        ) from error
    return calls


def _calls(container: Any, wanted: dict[int, str]) -> list[Call] | None:
    """What the graph of a container tells of calls; None where it does not tell all of it."""
    found: list[Call] = []
    read = nodes(container)
    for layer, inputs, outputs, _ in read:
        if is_container(layer):
            built_for = [tuple(tensor.shape) for tensor in getattr(layer, "inputs", None) or ()]
            same = [tuple(tensor.shape) for tensor in inputs] == built_for
            inside = _calls(layer, wanted) if same else None
            if inside is None:
                return None
            found += inside
        elif id(layer) in wanted:
            taken, made = (each[0] if len(each) == 1 else each for each in (inputs, outputs))
            found.append(Call(wanted[id(layer)], taken, made))
    return found if read else None


def _traced_calls(copy: Any, paths: Iterable[str]) -> list[Call]:
    specs = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), structure(copy, "input")
    )
    with record(copy, paths) as calls:
        run = tf.function(lambda values: copy(values, training=False), autograph=False)
        run.get_concrete_function(specs)
    return calls


def _known(model: Any, paths: Iterable[str]) -> dict[str, Any]:
    """The layers of these paths, in the model's order, or an error in words."""
    known, wanted = layers(model), set(paths)
    unknown = sorted(wanted - known.keys())
    if unknown:
        raise ValueError(f"paths must be layers of the model. Received: {unknown}")
    return {path: layer for path, layer in known.items() if path in wanted}
