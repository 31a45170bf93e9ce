"""What a change would cost against making it: plans applied, the divergence in NumPy."""

import keras
import numpy as np
import pytest
import tf_keras

import espace_tf.keras_layers  # noqa: F401  (registers the layers)
from espace_tf.analysis.trials import Change, WhatIf
from espace_tf.network import graph
from espace_tf.network.sites import read_sites
from espace_tf.numerics.factors import Factors, plain_factors, reconstruct
from espace_tf.objectives import losses
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
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


def test_one_trace_for_all_probes(monkeypatch):
    model = network(keras)
    sites = read_sites(model)
    traces, respond = [], WhatIf._respond
    monkeypatch.setattr(
        WhatIf, "_respond", lambda *given: (traces.append(given[1]), respond(*given))[1]
    )
    first, second = images()[:2]
    what_if = WhatIf(model, sites, [first, second[:1]], outputs=outputs(model))
    for site in sites:
        what_if.damage(Change(site=site, positions=POSITIONS))
        what_if.damage(Change(site=site, shift=np.ones(6, np.float32)))
    assert sorted(traces) == ["grouped", "shared", "shared"]  # which is called twice


def test_outputs_other_than_classes_count_their_relative_change():
    model = network(keras, "map")
    sites = read_sites(model)
    what_if = WhatIf(model, sites, images(), outputs=outputs(model, None))
    found = what_if.damage(Change(site=sites[0], positions=POSITIONS))
    small = apply(model, Plan(layers={sites[0].path: LayerPlan(positions=POSITIONS)}))
    batches = [(np.asarray(model(x), float), np.asarray(small(x), float)) for x in images()]
    before, after = (np.concatenate(each) for each in zip(*batches, strict=True))
    spread = before.var(axis=0).mean(axis=(0, 1))
    expected = (((before - after) ** 2).mean(axis=(0, 1, 2)) / spread).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def heads(units=(1, 1, 1), constant=False):
    """A network of a class head and of one of values in these units."""
    keras.utils.set_random_seed(SEED)
    x = keras.Input((8, 8, 4))
    y = keras.layers.Conv2D(6, 3, padding="same", activation="relu", name="conv")(x)
    y = keras.layers.Flatten()(y)
    classes = keras.layers.Dense(5, activation="softmax", name="classes")(y)
    values = keras.layers.Dense(3, name="values")(y)
    model = keras.Model(x, [classes, values])
    head = model.get_layer("values")
    kernel, bias = head.get_weights()
    kernel[:, 2] *= not constant
    head.set_weights([kernel * units, bias + np.array([0, 0, 7.0 * constant])])
    return model


@pytest.mark.parametrize("units", [(1000, 1000, 1000), (1, 1e-3, 1e4)])
def test_the_unit_of_values_does_not_matter(units):
    def damage(model):
        what_if = WhatIf(model, read_sites(model), images(), outputs=outputs(model, None))
        return what_if.damage(Change(site=read_sites(model)[0], positions=POSITIONS))

    assert damage(heads(units)) == pytest.approx(damage(heads()), rel=1e-4)


def test_each_of_several_heads_counts_by_its_own_spread():
    model = heads(constant=True)
    site = read_sites(model)[0]
    found = WhatIf(model, [site], images(), outputs=outputs(model, None)).damage(
        Change(site=site, positions=POSITIONS)
    )
    small, x = apply(model, Plan(layers={"conv": LayerPlan(positions=POSITIONS)})), images()
    before, after = ([np.asarray(y, float) for y in m(np.concatenate(x))] for m in (model, small))
    share = divergence(before[0], after[0], False)
    share /= (before[0] * np.log(before[0] / before[0].mean(axis=0))).sum(-1).mean()
    change, spread = ((before[1] - after[1]) ** 2).mean(axis=0), before[1].var(axis=0)
    spread[2] = spread[:2].mean()  # it is constant
    np.testing.assert_allclose(found, share + (change / spread).mean(), rtol=1e-3)


@LIBRARIES
@pytest.mark.parametrize("head", ["sigmoid", "logits"])
def test_each_of_several_labels_is_a_divergence_of_its_own(library, head):
    model = network(library, head)
    sites = read_sites(model)
    loss = library.losses.BinaryCrossentropy(from_logits=head == "logits")
    small = apply(model, Plan(layers={sites[0].path: LayerPlan(positions=POSITIONS)}))
    x = np.concatenate(images())
    p, q = (np.asarray(each(x), float) for each in (model, small))
    if head == "logits":
        p, q = (1 / (1 + np.exp(-z)) for z in (p, q))
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    what_if = WhatIf(model, sites, images(), outputs=outputs(model, loss))
    found = what_if.damage(Change(site=sites[0], positions=POSITIONS))
    assert expected > 1e-5
    np.testing.assert_allclose(found, expected, rtol=1e-3, err_msg=f"seed {SEED}")


def test_an_output_without_a_loss_counts_nothing():
    inner = network(keras)
    inputs = keras.Input((8, 8, 4))
    scores = inner(inputs)
    model = keras.Model(inputs, [scores, keras.layers.Dense(3)(scores)])
    sites = read_sites(model)
    found = []
    for loss in (["categorical_crossentropy", None], ["categorical_crossentropy", "mse"]):
        what_if = WhatIf(model, sites, images(), outputs=outputs(model, loss))
        found.append(what_if.damage(Change(site=sites[0], positions=POSITIONS)))
    alone = WhatIf(inner, read_sites(inner), images(), outputs=outputs(inner))
    expected = alone.damage(Change(site=read_sites(inner)[0], positions=POSITIONS))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert found[1] > found[0]


@LIBRARIES
@pytest.mark.parametrize("head", ["softmax", "logits", "sigmoid", "map"])
def test_slopes_tell_what_small_changes_cost_alone(library, head):
    model = network(library, head)
    sites, random = read_sites(model), np.random.default_rng(SEED)
    loss = {"sigmoid": "binary_crossentropy", "map": None}.get(head, "categorical_crossentropy")
    changes = []
    for site in sites:
        kernel = np.asarray(graph.layers(model)[site.path].get_weights()[0])
        moved = kernel + 1e-2 * random.normal(size=kernel.shape).astype(np.float32)
        changes.append(Change(site=site, kernel=moved))
        shift = 3e-2 * random.normal(size=site.filters).astype(np.float32)
        changes.append(Change(site=site, kernel=kernel, shift=shift))
        changes.append(Change(site=site, positions=np.delete(np.arange(64), [27])))
    # Neighbours are much alike; the same images many times: slopes are drawn for each.
    x = [np.tile(each[:, :1, :1] + 0.02 * each, (80, 1, 1, 1)) for each in images()]
    known = outputs(model, library.losses.get(loss) if loss else None)
    what_if = WhatIf(model, sites, x, outputs=known)
    expected = [what_if.damage(change) for change in changes]
    assert min(expected) > 1e-7
    np.testing.assert_allclose(what_if.alone(changes), expected, rtol=0.25)
