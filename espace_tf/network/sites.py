"""The convolutions of a model, and which of them cannot be touched."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import tensorflow as tf

from espace_tf.network.graph import is_container, layers
from espace_tf.network.layer_rules import DEPTHWISE, UNKNOWN, Rule, is_altered, kin, rule
from espace_tf.network.normal_form import without_graph
from espace_tf.network.recording import Call, run_at, trace
from espace_tf.records.site import Site, is_known


def read_sites(model: Any) -> list[Site]:
    """Every convolution of the model in execution order; `skip` says why one can't be touched.

    Raises:
        TypeError: not a Keras model.
        ValueError: the model has not been built.

    Example:
        >>> [site.path for site in read_sites(keras.applications.MobileNet(weights=None))][:2]
        ['conv1', 'conv_dw_1']
    """
    own = layers(model)
    found = {path: layer for path, layer in own.items() if kin(layer).convolution}
    calls: dict[str, list[Call]] = {}
    if found:
        for call in trace(model, found):
            calls.setdefault(call.path, []).append(call)
    order = [*calls, *(path for path in found if path not in calls)]
    made = [_site(path, found[path], calls.get(path, [])) for path in order]
    return made + list(_hidden_sites(model, own))


def at_size(model: Any, sites: Iterable[Site], size: tuple[int, int] | None) -> tuple[Site, ...]:
    """The sites with the sizes that their maps have where inputs of open size have this one.

    A site whose map had no size of its own stays one that is not masked.

    Args:
        model: theirs; a copy that nobody else runs, since it is hooked.
        sites: from `read_sites`.
        size: (H, W); None: no input is of open size.

    Raises:
        ValueError: the model does not run at that size.
    """
    open_sites = {site.path for site in sites if site.input_sizes and not is_known(site)}
    if size is None or not open_sites:
        return tuple(sites)
    calls: dict[str, list[Call]] = {}
    for call in run_at(model, open_sites, size):
        calls.setdefault(call.path, []).append(call)
    own = layers(model)
    sized = {path: _site(path, own[path], calls[path]) for path in open_sites}
    return tuple(
        replace(sized[site.path], mask_skip=site.mask_skip) if site.path in sized else site
        for site in sites
    )


def _hidden_sites(model: Any, own: dict[str, Any]) -> Iterator[Site]:
    """Convolutions inside wrappers and subclassed models, which cannot be replaced."""
    hosts = own if is_container(model) else {"": model}
    for path, host in hosts.items():
        inside = getattr(host, "_flatten_layers", None)
        for layer in inside(include_self=False) if inside else ():
            if kin(layer).convolution:
                reason = f"it is inside {host.name!r}, a {type(host).__name__}, which is left alone"
                if host is model:
                    reason += f": {without_graph(model)}"
                yield _site(f"{path}/{layer.name}".lstrip("/"), layer, [], reason)


def _site(path: str, layer: Any, calls: list[Call], skip: str | None = None) -> Site:
    known = kin(layer)
    shapes = [(_shape(call.inputs), _shape(call.outputs)) for call in calls]
    first, groups = layer.data_format == "channels_first", getattr(layer, "groups", 1)
    channel, spatial = (1, slice(2, None)) if first else (-1, slice(1, -1))
    input_sizes = tuple(tuple(before[spatial]) for before, _ in shapes)
    output_sizes = tuple(tuple(after[spatial]) for _, after in shapes)
    in_channels = shapes[0][0][channel] or 0 if shapes else 0
    kind = known.kind
    if kind == "conv" and groups == in_channels > 1:
        kind, known = "depthwise", replace(known, skip=DEPTHWISE)  # as some networks write it
    skip = skip or _skip(layer, known, bool(calls))
    return Site(
        path=path,
        kind=kind,
        kernel_size=tuple(layer.kernel_size),
        strides=tuple(layer.strides),
        dilation_rate=tuple(layer.dilation_rate),
        padding=layer.padding,
        groups=in_channels if kind == "depthwise" else groups,
        in_channels=in_channels,
        filters=shapes[0][1][channel] or 0 if shapes else getattr(layer, "filters", 0) or 0,
        use_bias=layer.use_bias,
        activation=getattr(layer.activation, "__name__", type(layer.activation).__name__),
        policy=layer.dtype_policy.name,
        input_sizes=input_sizes,
        output_sizes=output_sizes,
        skip=skip,
        mask_skip=None if skip else _mask_skip(input_sizes),
    )


def _shape(tensors: Any) -> list[int | None]:
    return list(tf.nest.flatten(tensors)[0].shape)


def _skip(layer: Any, known: Rule, called: bool) -> str | None:
    if not called:
        return "the model never calls it"
    if layer.data_format == "channels_first":
        return "its data format is channels_first: only channels_last is supported"
    if known.skip:
        return known.skip
    if is_altered(layer):
        return "it is quantized or has LoRA weights: compress the plain model first"
    if rule(layer) is UNKNOWN:
        return f"{type(layer).__name__} is a subclass of Conv2D: what it computes is not known"
    return None


def _mask_skip(input_sizes: tuple[tuple[int | None, ...], ...]) -> str | None:
    if any(None in size for size in input_sizes):
        return "its input size is not known before the data come"
    if len(set(input_sizes)) > 1:
        return f"it is called on maps of different sizes: {sorted(set(input_sizes))}"
    return None
