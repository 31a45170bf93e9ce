"""Calls of layers, recorded while a model runs: the only place where hooks stand on layers."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from espace_tf.network.graph import layers, library

_TRACED = ("train_function", "test_function", "predict_function", "train_tf_function")


@dataclass(frozen=True)
class Call:
    """One call of a layer: its path, what went in and what came out (tensors or nests)."""

    path: str
    inputs: Any
    outputs: Any


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
    """
    known, calls, undo = layers(model), [], []
    wanted = list(paths)
    unknown = [path for path in wanted if path not in known]
    if unknown:
        raise ValueError(f"paths must be layers of the model. Received: {unknown}")
    _RECORDING.acquire()
    traced = {name: vars(model)[name] for name in _TRACED if name in vars(model)}
    try:
        for name in traced:
            object.__setattr__(model, name, None)
        for path in wanted:
            layer = known[path]
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
        first = None if args else next(iter(kwargs))  # some layers take everything by keyword
        inputs = args[0] if args else kwargs[first]

        def own(values):
            if args:
                return original(values, *args[1:], **kwargs)
            return original(**{**kwargs, first: values})

        outputs = own(inputs) if replace is None else replace(path, layer, inputs, own)
        calls.append(Call(path, inputs, outputs))
        return outputs

    return call


def trace(model: Any, paths: Iterable[str]) -> list[Call]:
    """The calls of these layers when the model runs, as symbolic tensors, in execution order.

    Raises:
        ValueError: the model has not been built: its input shape is unknown.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise ValueError(
            f"model {model.name!r} has no input shape yet: give it an Input, or call it once"
        )
    structure = model.input if not isinstance(model, library(model).Sequential) else inputs[0]
    specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), structure)
    with record(model, paths) as calls:
        tf.function(lambda values: model(values, training=False)).get_concrete_function(specs)
    model._clear_losses()  # else symbolic activity losses would stay in model.losses
    return calls
