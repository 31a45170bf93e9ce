"""The plan of a compressed model, read back from its layers."""

from collections.abc import Iterator
from typing import Any

from espace_tf.network import graph
from espace_tf.network.layer_rules import COMPRESSED, rule
from espace_tf.network.sites import read_sites
from espace_tf.numerics.factors import Factors
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
from espace_tf.records.site import Site


def plan_of(model_or_plan: Any) -> Plan:
    """The plan that a model was made with, or what its layers tell of it; a Plan is its own.

    `espace_plan` is an attribute, which no file of a model holds. The layers of a loaded model know
    their ranks, factors and positions, and none of the times, speeds and reasons.

    Raises:
        TypeError: neither a Plan nor a model with compressed layers.
    """
    plan = getattr(model_or_plan, "espace_plan", model_or_plan)
    if isinstance(plan, Plan):
        return plan
    known = getattr(model_or_plan, "layers", None) and list(_layers(model_or_plan))
    layers = {path: made for path, made in known or () if isinstance(made, LayerPlan)}
    if not layers:
        raise TypeError(
            "model_or_plan must be a Plan, or a model that compress or apply returned. "
            f"Received: {model_or_plan!r}."
        )
    skipped = {path: made for path, made in known if isinstance(made, str)}
    return Plan(layers=layers, skipped=skipped, profile="not known")


def _layers(model: Any) -> Iterator[tuple[str, LayerPlan | str]]:
    """What becomes of every convolution, those inside fused graphs too."""
    known = graph.layers(model)
    for site in read_sites(model):
        if site.path in known and site.kind in COMPRESSED:
            yield site.path, _layer_plan(known[site.path], site)
        elif site.path in known:
            yield site.path, "as it was"
    for layer in known.values():
        if rule(layer).kind == "fused":
            yield from _layers(layer.model)


def _layer_plan(layer: Any, site: Site) -> LayerPlan:
    size = site.output_sizes[0] if len(set(site.output_sizes)) == 1 else (None,)
    pair = {}
    if site.kind == "decomposed":
        factors = Factors(*(weight.numpy() for weight in layer.weights))
        pair = {"rank": layer.rank, "order": layer.order, "factors": factors}
    return LayerPlan(
        **pair, positions=layer.positions, output_size=None if None in size else tuple(size)
    )
