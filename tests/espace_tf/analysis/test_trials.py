"""What a change would cost against making it: plans applied, the divergence in NumPy."""

import keras
import numpy as np
import pytest
import tf_keras

import espace_tf.keras_layers  # noqa: F401  (registers the layers)
from espace_tf.analysis.trials import Change, WhatIf
from espace_tf.data import losses
from espace_tf.network import graph
from espace_tf.network.sites import read_sites
from espace_tf.numerics.factors import Factors, plain_factors, reconstruct
from espace_tf.records.plan import LayerPlan, Plan
from espace_tf.rewriting.apply import apply

SEED = 2
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
POSITIONS = np.array([0, 3, 9, 14, 20, 27, 35, 44, 50, 58, 63])


def network(library, head="softmax"):
    library.utils.set_random_seed(SEED)
    layers, x = library.layers, library.Input((8, 8, 4))
    y = layers.Conv2D(6, 3, padding="same", groups=2, activation="relu", name="grouped")(x)
    shared = layers.Conv2D(6, 3, padding="same", use_bias=False, name="shared")
    y = shared(layers.BatchNormalization()(shared(y)))
    if head != "map":
        y = layers.Flatten()(layers.Activation("relu")(y))
        y = layers.Dense(5, activation=None if head == "logits" else head)(y)
    model = library.Model(x, y)
    random = np.random.default_rng(SEED)
    for layer in graph.layers(model).values():
        if not isinstance(layer, library.layers.BatchNormalization):
            scale = 0.02 if "dense" in layer.name else 0.4  # Far from certain of a class.
            weights = [scale * random.normal(size=w.shape) for w in layer.get_weights()]
            layer.set_weights(weights)
    return model


def images():
    random = np.random.default_rng(SEED + 1)
    return [random.normal(size=(size, 8, 8, 4)).astype(np.float32) for size in (5, 5, 3)]


def divergence(before, after, logits):
    """Mean KL(before || after) over samples, float64."""
    p, q = np.asarray(before, float), np.asarray(after, float)
    if logits:
        p, q = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in (p, q))
    return (p * np.log(p / q)).sum(-1).mean()


@LIBRARIES
@pytest.mark.parametrize(
    "head, path, change",
    [
        ("softmax", "grouped", "rank"),
        ("softmax", "shared", "mask"),
        ("logits", "grouped", "mask"),
        ("logits", "shared", "rank"),
        ("logits", "grouped", "both"),
    ],
)
def test_the_damage_is_that_of_the_plan_applied(library, head, path, change):
    model = network(library, head)
    sites = {site.path: site for site in read_sites(model)}
    layer, site = graph.layers(model)[path], sites[path]
    options, planned = {}, {}
    if change != "mask":
        factors = plain_factors(layer.get_weights()[0], 2, "vertical", site.groups)
        options["kernel"] = reconstruct(factors, "vertical", site.groups)
        if site.use_bias:
            options["shift"] = np.linspace(-0.2, 0.3, 6).astype(np.float32)
            bias = layer.get_weights()[1] + options["shift"]
            factors = Factors(factors.first, factors.second, bias)
        planned = {"rank": 2, "factors": factors}
    if change != "rank":
        options["positions"] = planned["positions"] = POSITIONS.astype(np.int32)
    small = apply(model, Plan(layers={path: LayerPlan(**planned)}))
    x = np.concatenate(images())
    expected = divergence(model(x), small(x), head == "logits")
    found = WhatIf(model, list(sites.values()), images(), outputs=outputs(model)).damage(
        Change(site=site, **options)
    )
    assert expected > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def outputs(model, loss="sparse_categorical_crossentropy"):
    return losses.of_outputs(model, model(images()[0]), loss=loss)


@LIBRARIES
def test_a_probe_leaves_nothing_behind(library):
    model = network(library)
    sites = read_sites(model)
    weights, what_if = model.get_weights(), WhatIf(model, sites, images(), outputs=outputs(model))
    kernel = np.zeros_like(graph.layers(model)["shared"].get_weights()[0])
    first = what_if.damage(Change(site=sites[1], kernel=kernel))
    masked = what_if.damage(
        Change(site=sites[0], positions=POSITIONS, shift=np.ones(6, np.float32))
    )
    assert what_if.damage(Change(site=sites[0])) == pytest.approx(0, abs=1e-7)
    assert what_if.damage(Change(site=sites[1], kernel=kernel)) == first > 0 and masked > 0
    assert all(map(np.array_equal, model.get_weights(), weights))


def test_changes_of_several_layers_are_made_at_once():
    model = network(keras)
    sites = read_sites(model)
    masks = {site.path: POSITIONS for site in sites}
    small = apply(model, Plan(layers={path: LayerPlan(positions=p) for path, p in masks.items()}))
    x = np.concatenate(images())
    what_if = WhatIf(model, sites, images(), outputs=outputs(model))
    found = what_if.damage(*(Change(site=site, positions=POSITIONS) for site in sites))
    np.testing.assert_allclose(found, divergence(model(x), small(x), False), rtol=1e-3)
    assert what_if.damage() == pytest.approx(0, abs=1e-7)


def test_one_trace_for_all_probes():
    model = network(keras)
    sites = read_sites(model)
    what_if = WhatIf(model, sites, images()[:2], outputs=outputs(model))
    traced = what_if._forward.experimental_get_tracing_count()
    for site in sites:
        what_if.damage(Change(site=site, positions=POSITIONS))
        what_if.damage(Change(site=site, shift=np.ones(6, np.float32)))
    assert traced == what_if._forward.experimental_get_tracing_count() == 1


def test_outputs_other_than_classes_count_their_relative_change():
    model = network(keras, "map")
    sites = read_sites(model)
    what_if = WhatIf(model, sites, images(), outputs=outputs(model, None))
    found = what_if.damage(Change(site=sites[0], positions=POSITIONS))
    small = apply(model, Plan(layers={sites[0].path: LayerPlan(positions=POSITIONS)}))
    batches = [(np.asarray(model(x), float), np.asarray(small(x), float)) for x in images()]
    each = [((a - b) ** 2).mean() / a.var() for a, b in batches]
    np.testing.assert_allclose(found, np.average(each, weights=[5, 5, 3]), rtol=1e-4)
