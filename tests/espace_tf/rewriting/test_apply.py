"""Plans applied, batch norms folded, compressed models made dense: against the stock model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import espace_tf.keras_layers  # noqa: F401  (registers the layers)
from espace_tf.kernels.index_map import nearest_spread
from espace_tf.network import graph, recording
from espace_tf.numerics.factors import Factors, reconstruct
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply, densify
from espace_tf.rewriting.strip import strip

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def randomise(model, seed):
    random = np.random.default_rng(seed)
    for layer in graph.layers(model).values():
        if "BatchNormalization" in type(layer).__name__:
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])


def network(library, seed=0):
    library.utils.set_random_seed(seed)
    layers, x = library.layers, library.Input((12, 12, 3))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="a")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="a_norm")(y))
    y = layers.Conv2D(8, (3, 5), padding="same", groups=2, name="b", activation="relu")(y)
    y = layers.BatchNormalization(name="b_norm")(y)
    y = layers.DepthwiseConv2D(3, name="c", depth_multiplier=2)(y)
    y = layers.BatchNormalization(scale=False, center=False, name="c_norm")(y)
    y = layers.Dropout(0.3, name="drop")(y)
    y = layers.Conv2D(6, 1, name="d")(y)
    y = layers.GlobalAveragePooling2D()(y)
    y = layers.BatchNormalization(name="head_norm")(layers.Dense(5, name="head")(y))
    model = library.Model(x, y)
    randomise(model, seed)
    return model


def images(seed=1):
    return np.random.default_rng(seed).normal(size=(3, 12, 12, 3)).astype(np.float32)


def same(ours, theirs, tolerance=1e-4):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, np.asarray(theirs) / scale, atol=tolerance)


@LIBRARIES
def test_full_rank_and_every_position_is_the_same_network(library):
    model, x = network(library), images()
    small = apply(model, Plan.uniform(model, rank_ratio=1.0, keep=1.0))
    assert {"a", "b"} <= set(small.espace_plan.layers)
    same(small(x), model(x))


@LIBRARIES
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_does_what_kernel_and_gather_do(library, seed):
    model, x = network(library, seed), images(seed)
    random = np.random.default_rng(seed)
    kernel = model.get_layer("a").get_weights()[0]
    shape = {"first": (3, 1, 3, 4), "second": (1, 3, 4, 8)}
    factors = Factors(
        *(random.normal(size=s).astype(np.float32) for s in shape.values()),
        bias=random.normal(size=8).astype(np.float32),
    )
    kept = np.sort(random.choice(144, 50, replace=False))
    plan = Plan(
        layers={
            "a": LayerPlan(4, factors=factors, positions=kept),
            "d": LayerPlan(positions=[0, 7, 50]),
        }
    )
    small = apply(model, plan)
    effective = reconstruct(factors, "vertical")
    assert effective.shape == kernel.shape
    dense = tf.nn.conv2d(x, effective, 1, "SAME") + factors.bias
    shown = kept[nearest_spread((12, 12), kept)]
    wanted = tf.gather(tf.reshape(dense, (3, 144, 8)), shown, axis=1)
    with recording.record(small, ["a", "c", "d"]) as calls:
        small(x)
    found = {call.path: call for call in calls}
    same(tf.reshape(found["a"].outputs, (3, 144, 8)), wanted, 1e-5)
    dense = model.get_layer("d")(found["d"].inputs)
    shown = np.array([0, 7, 50])[nearest_spread((10, 10), np.array([0, 7, 50]))]
    wanted = tf.gather(tf.reshape(dense, (3, 100, 6)), shown, axis=1)
    same(tf.reshape(found["d"].outputs, (3, 100, 6)), wanted, 1e-5)


@LIBRARIES
def test_half_rank_and_half_the_positions_train_save_and_strip(library, tmp_path):
    model, x = network(library), images()
    weights = [np.array(w) for w in model.get_weights()]
    small = apply(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    small.compile("sgd", "mse")
    small.fit(x, np.zeros((3, 5), np.float32), verbose=0)
    small.save(tmp_path / "small.keras")
    again = library.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(again(x), small(x))
    same(strip(small)(x), small(x))
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@LIBRARIES
def test_strip_folds_what_it_may_and_keeps_the_outputs(library):
    model, x = network(library), images()
    stripped = strip(model)
    kinds = {path: type(layer).__name__ for path, layer in graph.layers(stripped).items()}
    assert [kinds[name] for name in ("a_norm", "c_norm", "head_norm", "drop")] == ["Identity"] * 4
    assert kinds["b_norm"] == "BatchNormalization"  # b has an activation of its own
    same(stripped(x), model(x))


@LIBRARIES
@pytest.mark.parametrize(
    "options, fused",
    [
        ({}, "relu"),
        ({"max_value": 6.0}, "relu6"),
        ({"max_value": 4.0}, None),
        ({"negative_slope": 0.1}, None),
        ({"threshold": 0.5}, None),
    ],
)
def test_strip_makes_a_relu_the_activation_of_what_it_reads(library, options, fused):
    layers, x = library.layers, library.Input((12, 12, 3))
    y = layers.Conv2D(8, 3, name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.ReLU(**options, name="relu")(y)
    y = layers.Conv2D(8, 3, name="shown")(y)
    model = library.Model(x, [y, layers.Activation("relu", name="last")(y)])
    randomise(model, 0)
    small = apply(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    stripped = strip(small, fuse=False)
    known = graph.layers(stripped)
    assert known["conv"].activation.__name__ == (fused or "linear")
    assert type(known["relu"]).__name__ == ("Identity" if fused else "ReLU")
    assert known["shown"].activation.__name__ == "linear"  # an output of the model, too
    for ours, theirs in zip(stripped(images()), small(images()), strict=True):
        same(ours, theirs)


@LIBRARIES
def test_strip_heeds_what_the_graph_says_of_training(library):
    def built(training):
        layers, x = library.layers, library.Input((12, 12, 3))
        inside = [layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")]
        y = library.Sequential(inside, name="inner")(x, training=training)
        model = library.Model(x, layers.Dropout(0.5, name="drop")(y, training=training))
        randomise(model, 0)
        return model

    def kinds(model):
        return [type(layer).__name__ for layer in graph.layers(model).values()]

    model = built(False)
    assert kinds(strip(model)) == ["Conv2D", "Identity", "Identity"]
    same(strip(model)(images()), model(images()))
    model = built(True)
    assert kinds(strip(model)) == ["Conv2D", "BatchNormalization", "Dropout"]


@LIBRARIES
def test_densify_multiplies_the_pairs_out(library):
    model, x = network(library), images()
    full = apply(model, Plan.uniform(model))
    dense = densify(model, full)
    assert type(graph.layers(dense)["a"]) is library.layers.Conv2D
    same(dense(x), model(x))
    half = apply(model, Plan.uniform(model, rank_ratio=0.5))
    same(densify(model, half)(x), half(x))
    with pytest.raises(ValueError, match="other layers"):
        densify(model, library.Sequential([library.layers.Dense(2)]))


def test_a_plan_that_does_not_fit_is_refused_in_words():
    model = network(keras)

    def refused(match, plan):
        with pytest.raises(ValueError, match=match):
            apply(model, plan)

    refused("fingerprint", Plan(fingerprint="0123", layers={}))
    refused("no convolution", Plan(layers={"e": LayerPlan(rank=1)}))
    refused("depthwise", Plan(layers={"c": LayerPlan(rank=1)}))
    refused("the largest, vertical first, is 9", Plan(layers={"a": LayerPlan(rank=10)}))
    refused("144 positions", Plan(layers={"a": LayerPlan(positions=[3, 144])}))
    for size in ((6, 24), (8, 8), (24, 24)):
        foreign = LayerPlan(positions=[3, 63], output_size=size)
        words = f"'a' on a map of {size[0]} x {size[1]}; the model's is 12 x 12: make a plan"
        refused(words, Plan(layers={"a": foreign}))
    apply(model, Plan(layers={"a": LayerPlan(positions=[3, 63], output_size=(12, 12))}))
    with pytest.raises(TypeError, match="Plan"):
        apply(model, {"a": 3})
