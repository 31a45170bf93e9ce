"""A plan put into a model, and a compressed model made dense again."""

import difflib
import math
from typing import Any

import numpy as np

from espace_tf.checks import warn
from espace_tf.config import EspaceWarning
from espace_tf.keras_layers import for_library
from espace_tf.network import graph
from espace_tf.network.copies import cloning
from espace_tf.network.copies.likeness import like
from espace_tf.network.layer_rules import COMPRESSED, rule
from espace_tf.network.network import Network
from espace_tf.network.normal_form import normal
from espace_tf.numerics.factors import Factors, plain_factors, reconstruct
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
from espace_tf.records.site import Site


def apply(model: Any, plan: Plan) -> Any:
    """A copy of a model with the plan's factors and masks in the place of its convolutions.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras.
        plan: what becomes of each convolution; a layer with a rank and no factors gets the plain
            ones, from its own weights (Tai et al. 2016, closed form).

    Returns:
        The new model, of the same library, with `espace_plan` set to the plan. An EspaceWarning
        says what the model's class did in training that the new model does not.

    Raises:
        ValueError: the plan is of another model, or names a layer, a rank or positions that the
            model does not have.

    Example:
        >>> small = apply(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
        >>> small.espace_plan.layers["conv2"].rank
        12
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan. Received: {type(plan).__name__}")
    compressed = applied(Network.read(model), plan)
    warn_of_class(model, compressed)
    return compressed


def applied(network: Network, plan: Plan) -> Any:
    """`apply` to a model that has been read."""
    model, known = network.model, network.layers
    sites = {site.path: site for site in network.sites}
    _check_network(network, plan)
    for path, layer_plan in plan.layers.items():
        _check_layer(path, layer_plan, sites)
    classes = for_library(graph.library(model))
    parts = {
        path: _parts(known[path], layer_plan, sites[path])
        for path, layer_plan in plan.layers.items()
    }

    def replace(path: str, layer: Any) -> Any:
        if path not in parts:
            return None
        layer_plan, (_, use_bias) = plan.layers[path], parts[path]
        changes = {"use_bias": use_bias, "positions": layer_plan.positions}
        if layer_plan.rank is None:
            return like(layer, classes.MaskedConv2D, **changes)
        changes |= {"rank": layer_plan.rank, "order": layer_plan.order}
        return like(layer, classes.DecomposedConv2D, **changes)

    compressed = cloning.clone_with(
        model, replace, {path: weights for path, (weights, _) in parts.items()}
    )
    compressed.espace_plan = plan
    return compressed


def warn_of_class(model: Any, copy: Any) -> None:
    """Warns if a copy of a model is of another class, which lacks methods of the model's."""
    if lost := cloning.left_behind(model, copy):
        warn(
            f"model {model.name!r} is a {type(model).__name__}, a class with an __init__ or a call "
            f"of its own; the new model is a {type(copy).__name__} without its {', '.join(lost)}: "
            "fit and evaluate will not call them. Move what __init__ does to a function that "
            "builds the model, and the class is kept; or give compile a loss that says the same",
            EspaceWarning,
        )


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
    model, small = normal(model), graph.layers(compressed)
    if set(graph.layers(model)) != set(small):
        raise ValueError(
            "compressed must be what apply(model, plan) returned for this model. Received: a model"
            f" with other layers ({compressed.name!r})"
        )
    weights = {path: _dense_weights(small[path]) for path in graph.layers(model)}

    def replace(path: str, layer: Any) -> Any:
        if rule(small[path]).kind not in COMPRESSED:
            return None
        return like(layer, use_bias=small[path].use_bias)

    return cloning.clone_with(model, replace, weights)


def _check_network(network: Network, plan: Plan) -> None:
    own = network.fingerprint
    if plan.fingerprint is not None and plan.fingerprint != own:
        raise ValueError(
            f"plan is for another model: it was made for fingerprint {plan.fingerprint}, the model "
            f"{network.model.name!r} has {own}. Make a plan for this model"
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
        _check_positions(path, layer_plan, site.geometry().output_size)


def _check_positions(path: str, layer_plan: LayerPlan, size: tuple[int, int]) -> None:
    own, last = " x ".join(map(str, size)), layer_plan.positions[-1]
    if layer_plan.output_size not in (None, size):
        found = " x ".join(map(str, layer_plan.output_size))
        raise ValueError(
            f"plan has positions for {path!r} on a map of {found}; the model's is {own}: make a "
            "plan for this model"
        )
    if last >= math.prod(size):
        raise ValueError(
            f"plan keeps position {last} of {path!r}, whose map has {math.prod(size)} positions "
            f"({own})"
        )


def _parts(layer: Any, layer_plan: LayerPlan, site: Site) -> tuple[list[Any], bool]:
    """The new layer's weights, and whether it has a bias."""
    weights = [np.asarray(weight) for weight in layer.get_weights()]
    bias = weights[1] if site.use_bias else None
    others = weights[1 + site.use_bias :]  # of an activation that is a layer
    if layer_plan.rank is None:
        return [weights[0], bias, *others], bias is not None
    factors = layer_plan.factors
    if factors is None:
        factors = plain_factors(weights[0], layer_plan.rank, layer_plan.order, site.groups)
    bias = bias if factors.bias is None else factors.bias
    return [factors.first, factors.second, bias, *others], bias is not None


def _dense_weights(layer: Any) -> list[np.ndarray]:
    weights = layer.get_weights()
    if rule(layer).kind != "decomposed":
        return weights
    first, second, *others = weights
    return [reconstruct(Factors(first, second), layer.order, layer.groups), *others]
