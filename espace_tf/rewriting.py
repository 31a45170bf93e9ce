"""Models rewritten: a plan put in, batch norms folded, a compressed model made dense again.

Every function returns a new model and leaves the one it was given as it was.
"""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from espace_tf import cloning, fusing, graph
from espace_tf.factors import Factors, plain_factors, reconstruct
from espace_tf.keras_layers import for_library
from espace_tf.packing import pack
from espace_tf.plans import LayerPlan, Plan
from espace_tf.sites import Site

_NOISE = ("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise")
_OURS = ("MaskedConv2D", "DecomposedConv2D")
_FOLDED = ("Conv2D", "DepthwiseConv2D", "Dense", *_OURS)


def apply(model: Any, plan: Plan) -> Any:
    """A copy of a model with the plan's factors and masks in the place of its convolutions.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras.
        plan: what becomes of each convolution; a layer with a rank and no factors gets the plain
            ones, from its own weights (Tai et al. 2016, closed form).

    Returns:
        The new model, of the same library, with `espace_plan` set to the plan. With plan.packed it
        has packed regions (see packing.pack); models of tf_keras never have.

    Raises:
        ValueError: the plan is of another model, or names a layer, a rank or positions that the
            model does not have.

    Example:
        >>> small = apply(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
        >>> small.espace_plan.layers["conv2"].rank
        48
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan. Received: {type(plan).__name__}")
    sites = {site.path: site for site in graph.sites(model)}
    _check_model(model, plan)
    for path, layer_plan in plan.layers.items():
        _check_layer(path, layer_plan, sites)
    known, classes = graph.layers(model), for_library(graph.library(model))
    parts = {
        path: _parts(known[path], layer_plan, sites[path])
        for path, layer_plan in plan.layers.items()
    }

    def replace(path: str, layer: Any) -> Any:
        if path not in parts:
            return None
        layer_plan, (_, use_bias) = plan.layers[path], parts[path]
        config = {**layer.get_config(), "use_bias": use_bias, "positions": layer_plan.positions}
        if layer_plan.rank is None:
            return classes.MaskedConv2D.from_config(config)
        config |= {"rank": layer_plan.rank, "order": layer_plan.order}
        return classes.DecomposedConv2D.from_config(config)

    compressed = _rebuilt(model, replace, {path: weights for path, (weights, _) in parts.items()})
    compressed.espace_plan = plan
    return pack(compressed) if plan.packed else compressed


def strip(model: Any, *, fuse: bool = True) -> Any:
    """A copy of a model for inference: batch norms folded into the layers before them, no dropout.

    Both become identities of the same name. A batch norm is folded where it alone reads a
    convolution or dense layer without activation; others stay, and so does what the graph calls
    with training=True. A ReLU that alone reads a masked or decomposed convolution becomes that
    layer's own activation, which saves a pass over its output.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras, compressed or not.
        fuse: in a Keras 3 model with masked or decomposed layers, makes each stretch that one
            native operation can run one `FusedGraph` layer, with the layers inside (see
            `espace_tf.fusing.fuse`); they are no longer in the model's own list of layers. Other
            models have no such layers, nor have tf_keras models.

    Returns:
        The new model; the same outputs at inference, to float rounding. `espace_plan` is kept.

    Example:
        >>> espace_tf.benchmark(strip(model), strip(small), batch_size=16)
    """
    known, library = graph.layers(model), graph.library(model)
    pairs = {
        path: known[norm]
        for path, norm in graph.fold_candidates(model)
        if _folds(known[path], known[norm])
    }
    folded, training = {id(norm) for norm in pairs.values()}, graph.trained(model)
    activations = _activations(model, folded)
    folded |= {id(known[after]) for after, _ in activations.values()}

    def replace(path: str, layer: Any) -> Any:
        noise = type(layer).__name__ in _NOISE and path not in training
        if id(layer) in folded or noise:
            return library.layers.Identity(name=layer.name, dtype=layer.get_config()["dtype"])
        changes = {"use_bias": True} if path in pairs else {}
        if path in activations:
            changes["activation"] = activations[path][1]
        return type(layer).from_config({**layer.get_config(), **changes}) if changes else None

    weights = {path: known[path].get_weights() for path in activations}
    weights |= {path: _fold(known[path], norm) for path, norm in pairs.items()}
    stripped = _rebuilt(model, replace, weights)
    if hasattr(model, "espace_plan"):
        stripped.espace_plan = model.espace_plan
    compressed = any(type(layer).__name__ in _OURS for layer in known.values())
    return fusing.fuse(stripped) if fuse and compressed else stripped


def densify(model: Any, compressed: Any) -> Any:
    """The architecture of a model with the effective weights of its compressed form.

    Each pair is multiplied out to the one kernel that it stands for and masks are dropped, so that
    a fine-tuned network can be analysed and compressed further.

    Args:
        model: what `apply` was given.
        compressed: what `apply` returned, trained or not.

    Raises:
        ValueError: the two do not belong together.
    """
    small = graph.layers(compressed)
    if set(graph.layers(model)) != {p for p in small if type(small[p]).__name__ != "GatherRows"}:
        raise ValueError(
            "compressed must be what apply(model, plan) returned for this model. Received: a model"
            f" with other layers ({compressed.name!r})"
        )
    weights = {path: _dense_weights(small[path]) for path in graph.layers(model)}

    def replace(path: str, layer: Any) -> Any:
        if type(small[path]).__name__ not in _OURS:
            return None
        return type(layer).from_config({**layer.get_config(), "use_bias": small[path].use_bias})

    return _rebuilt(model, replace, weights)


def _rebuilt(model: Any, replace: Callable, weights: dict[str, list[Any]]) -> Any:
    made = cloning.clone(model, replace)
    new = graph.layers(made)
    for path, values in weights.items():
        cloning.assign(new[path], values)
    return made


def _check_model(model: Any, plan: Plan) -> None:
    own = graph.fingerprint(model)
    if plan.fingerprint is not None and plan.fingerprint != own:
        raise ValueError(
            f"plan is for another model: it was made for fingerprint {plan.fingerprint}, the model "
            f"{model.name!r} has {own}. Make a plan for this model"
        )


def _check_layer(path: str, layer_plan: LayerPlan, sites: dict[str, Site]) -> None:
    if path not in sites:
        close = difflib.get_close_matches(path, sites, 3, 0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(sites)}"
        raise ValueError(f"plan names the layer {path!r}, no convolution of the model: {hint}")
    site = sites[path]
    if site.skip:
        raise ValueError(f"plan changes {path!r}, which cannot be compressed: {site.skip}")
    if layer_plan.rank is not None and layer_plan.rank > site.full_rank(layer_plan.order):
        raise ValueError(
            f"plan gives {path!r} the rank {layer_plan.rank}; the largest, {layer_plan.order} "
            f"first, is {site.full_rank(layer_plan.order)}"
        )
    if layer_plan.positions is not None:
        size = site.geometry().rows_out
        if layer_plan.positions[-1] >= size:
            raise ValueError(
                f"plan keeps position {layer_plan.positions[-1]} of {path!r}, whose map has {size}"
                f" positions ({' x '.join(map(str, site.output_sizes[0]))})"
            )


def _parts(layer: Any, layer_plan: LayerPlan, site: Site) -> tuple[list[Any], bool]:
    """The new layer's weights, and whether it has a bias."""
    weights = [np.asarray(weight) for weight in layer.get_weights()]
    bias = weights[1] if site.use_bias else None
    if layer_plan.rank is None:
        return [weights[0], bias], bias is not None
    factors = layer_plan.factors
    if factors is None:
        factors = plain_factors(weights[0], layer_plan.rank, layer_plan.order, site.groups)
    bias = bias if factors.bias is None else factors.bias
    return [factors.first, factors.second, bias], bias is not None


def _dense_weights(layer: Any) -> list[np.ndarray]:
    weights = layer.get_weights()
    if type(layer).__name__ != "DecomposedConv2D":
        return weights
    first, second, *bias = weights
    return [reconstruct(Factors(first, second), layer.order, layer.groups), *bias]


def _folds(layer: Any, norm: Any) -> bool:
    kind = type(layer).__name__
    last = list(np.atleast_1d(norm.axis))[0] in (-1, len(layer.output.shape) - 1)
    linear = getattr(layer.activation, "__name__", "") == "linear" if kind in _FOLDED else False
    return kind in _FOLDED and linear and last


def _activations(model: Any, folded: set[int]) -> dict[str, tuple[str, str]]:
    """(path of the activation layer, its name) by layer of ours that it alone reads.

    A batch norm between them counts as gone when it is folded.
    """
    known, consumers = graph.layers(model), dict(graph.single_consumers(model))
    found = {}
    for path, after in consumers.items():
        layer = known[path]
        if id(known[after]) in folded:
            after = consumers.get(after)
        if type(layer).__name__ not in _OURS or layer.activation.__name__ != "linear" or not after:
            continue
        if name := _relu(known[after]):
            found[path] = (after, name)
    return found


def _relu(layer: Any) -> str | None:
    """ "relu" or "relu6" if a layer is just that, else None."""
    config = layer.get_config()
    if type(layer).__name__ == "Activation":
        name = config["activation"]
        return name if name in ("relu", "relu6") else None
    if type(layer).__name__ != "ReLU" or config["negative_slope"] or config["threshold"]:
        return None
    most = config["max_value"]  # tf_keras gives arrays of no dimension
    return "relu" if most is None else "relu6" if most == 6 else None


def _fold(layer: Any, norm: Any) -> list[np.ndarray]:
    """The layer's weights with y = gamma (x - mean) / sqrt(variance + epsilon) + beta in them."""
    *kernels, bias = layer.get_weights() if layer.use_bias else [*layer.get_weights(), 0.0]
    mean, variance = (v.numpy().astype(float) for v in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    shift = norm.beta.numpy() if norm.center else 0.0
    last = np.asarray(kernels[-1], float)
    width = scale.reshape(last.shape[2:]) if "Depthwise" in type(layer).__name__ else scale
    return [*kernels[:-1], last * width, (np.asarray(bias, float) - mean) * scale + shift]
