"""Keras models as data: their layers, their convolutions and what feeds what.

With cloning.py the only module that reads Keras internals; both know Keras 3 and tf_keras.
"""

import contextlib
import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from espace_tf.sites import Site

_KINDS = {
    "Conv2D": "conv",
    "DepthwiseConv2D": "depthwise",
    "SeparableConv2D": "separable",
    "Conv2DTranspose": "transpose",
    "Conv1D": "conv1d",
    "Conv3D": "conv3d",
    "MaskedConv2D": "masked",
    "DecomposedConv2D": "decomposed",
}
_KIND_SKIPS = {
    "depthwise": "a depthwise convolution is not decomposed",
    "separable": "a separable convolution is already factored",
    "transpose": "transposed convolutions are not supported",
    "conv1d": "only 2-D convolutions are supported",
    "conv3d": "only 2-D convolutions are supported",
    "masked": "already compressed: compress the original model instead",
    "decomposed": "already compressed: compress the original model instead",
}
_STEPS = ("strides", "dilation_rate", "padding")
_TRACED = ("train_function", "test_function", "predict_function", "train_tf_function")


@dataclass(frozen=True)
class Call:
    """One call of a layer: its path, what went in and what came out (tensors or nests)."""

    path: str
    inputs: Any
    outputs: Any


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


def is_container(layer: Any) -> bool:
    """Whether a layer is a Functional or Sequential model, whose inner layers can be replaced.

    A subclass with a call of its own computes something that its graph does not tell: it is none.
    """
    caller = next((base for base in type(layer).__mro__ if "call" in vars(base)), None)
    return getattr(caller, "__name__", "") in ("Functional", "Sequential")


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
            if id(layer) in seen or type(layer).__name__ == "InputLayer":
                continue
            seen.add(id(layer))
            if is_container(layer):
                walk(layer, f"{prefix}{layer.name}/")
            else:
                found[prefix + layer.name] = layer

    library(model)
    if is_container(model):
        walk(model, "")
    return found


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
        steps = [getattr(layer, name) for name in _STEPS] if _kind(model, layer) else []
        lines.append(f"{path} {type(layer).__name__} {shapes} {steps}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


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


def sites(model: Any) -> list[Site]:
    """Every convolution of the model in execution order; `skip` says why one can't be touched.

    Raises:
        TypeError: not a Keras model.
        ValueError: the model has not been built.

    Example:
        >>> [site.path for site in sites(keras.applications.VGG16(weights=None))][:2]
        ['block1_conv1', 'block1_conv2']
    """
    own = layers(model)
    found = {path: layer for path, layer in own.items() if _kind(model, layer)}
    calls: dict[str, list[Call]] = {}
    if found:
        for call in trace(model, found):
            calls.setdefault(call.path, []).append(call)
    order = [*calls, *(path for path in found if path not in calls)]
    made = [_site(model, path, found[path], calls.get(path, [])) for path in order]
    return made + list(_hidden_sites(model, own))


def _kind(model: Any, layer: Any) -> str | None:
    """What kind of convolution a layer is; None: none."""
    known = library(model).layers
    for base in type(layer).__mro__:
        name = base.__name__
        if name in _KINDS and (
            base is getattr(known, name, None) or "espace_tf" in base.__module__
        ):
            return _KINDS[name]
    return None


def _hidden_sites(model: Any, own: dict[str, Any]) -> Iterator[Site]:
    """Convolutions inside wrappers and subclassed models, which cannot be replaced."""
    hosts = own if is_container(model) else {"": model}
    for path, host in hosts.items():
        inside = getattr(host, "_flatten_layers", None)
        for layer in inside(include_self=False) if inside else ():
            if _kind(model, layer):
                reason = f"it is inside {host.name!r}, a {type(host).__name__}, which is left alone"
                yield _site(model, f"{path}/{layer.name}".lstrip("/"), layer, [], reason)


def _site(model: Any, path: str, layer: Any, calls: list[Call], skip: str | None = None) -> Site:
    config, kind = layer.get_config(), _kind(model, layer)
    shapes = [(_shape(call.inputs), _shape(call.outputs)) for call in calls]
    first = config.get("data_format") == "channels_first"
    channel, spatial = (1, slice(2, None)) if first else (-1, slice(1, -1))
    input_sizes = tuple(tuple(before[spatial]) for before, _ in shapes)
    output_sizes = tuple(tuple(after[spatial]) for _, after in shapes)
    in_channels = shapes[0][0][channel] or 0 if shapes else 0
    if kind == "conv" and config.get("groups", 1) == in_channels > 1:
        kind = "depthwise"  # as some networks write it
    skip = skip or _skip(model, layer, kind, config, bool(calls))
    return Site(
        path=path,
        kind=kind,
        kernel_size=tuple(config["kernel_size"]),
        strides=tuple(config["strides"]),
        dilation_rate=tuple(config["dilation_rate"]),
        padding=config["padding"],
        groups=in_channels if kind == "depthwise" else config.get("groups", 1),
        in_channels=in_channels,
        filters=shapes[0][1][channel] or 0 if shapes else config.get("filters") or 0,
        use_bias=config["use_bias"],
        activation=getattr(layer.activation, "__name__", type(layer.activation).__name__),
        input_sizes=input_sizes,
        output_sizes=output_sizes,
        skip=skip,
        mask_skip=None if skip else _mask_skip(input_sizes),
    )


def _shape(tensor: Any) -> list[int | None]:
    return tensor.shape.as_list()


def _skip(model: Any, layer: Any, kind: str, config: dict, called: bool) -> str | None:
    if not called:
        return "the model never calls it"
    if config.get("data_format") == "channels_first":
        return "its data format is channels_first: only channels_last is supported"
    if kind in _KIND_SKIPS:
        return _KIND_SKIPS[kind]
    if type(layer) is not library(model).layers.Conv2D:
        return f"{type(layer).__name__} is a subclass of Conv2D: what it computes is not known"
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        return "it is quantized or has LoRA weights: compress the plain model first"
    return None


def _mask_skip(input_sizes: tuple[tuple[int | None, ...], ...]) -> str | None:
    if any(None in size for size in input_sizes):
        return "its input size is not known before the data come"
    if len(set(input_sizes)) > 1:
        return f"it is called on maps of different sizes: {sorted(set(input_sizes))}"
    return None


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


def fold_candidates(model: Any) -> list[tuple[str, str]]:
    """Pairs (layer, batch normalization) where only the batch normalization reads the layer.

    Without those batch normalizations that take the statistics of the batch even at inference.
    """
    norm, known, training = library(model).layers.BatchNormalization, layers(model), trained(model)
    return [
        pair
        for pair in single_consumers(model)
        if isinstance(known[pair[1]], norm) and pair[1] not in training
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


def nodes(container: Any) -> list[tuple[Any, list[Any], list[Any], bool]]:
    """(layer, inputs, outputs, called with training=True) of every call, in order of execution."""
    functional = getattr(container, "_functional", None) or container
    by_depth = getattr(functional, "_nodes_by_depth", None) or {}
    found = []
    depths = sorted(by_depth, reverse=True)
    for node in (node for depth in depths for node in by_depth[depth] if not node.is_input):
        if hasattr(node, "operation"):
            layer, kwargs = node.operation, node.arguments.kwargs
            inputs, outputs = node.input_tensors, node.output_tensors
        else:
            layer, kwargs = node.layer, node.call_kwargs
            inputs, outputs = list(node.keras_inputs), tf.nest.flatten(node.outputs)
        found.append((layer, inputs, outputs, kwargs.get("training") is True))
    return found
