"""Models as one graph: subclassed ones, layers of the user's own, separable convolutions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.network import graph
from espace_tf.network.normal_form import normal, without_graph
from espace_tf.network.sites import read_sites
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply, densify

layers = keras.layers
SEED = 4


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(SEED)


def images(*shape):
    return np.random.default_rng(SEED).random((2, *(shape or (10, 9, 3))), np.float32)


class Residual(layers.Layer):
    """Two convolutions and a batch norm, around which the input goes; Keras operations between."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.first = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()
        self.second = layers.Conv2D(filters, 3, padding="same")

    def call(self, x, training=False):
        return x + self.second(keras.ops.relu(self.norm(self.first(x), training=training)))


class Network(keras.Model):
    """Plain attributes, a block of the user's, and a Functional part."""

    def __init__(self, **options):
        super().__init__(**options)
        self.stem = layers.Conv2D(4, 3, activation="relu")
        self.block = Residual(4)
        inputs = keras.Input((8, 7, 4))
        self.part = keras.Model(inputs, layers.Conv2D(6, 3, name="inside")(inputs), name="part")
        self.head = layers.Dense(3)

    def call(self, x, training=False):
        x = self.block(self.stem(x), training=training)
        return self.head(keras.ops.mean(self.part(x), axis=(1, 2)))


def called(model, x):
    model(x)
    random = np.random.default_rng(SEED)
    model.set_weights(
        [random.normal(size=w.shape) * 0.5 + 0.5 * (w.ndim == 1) for w in model.get_weights()]
    )
    return model


def test_a_subclassed_model_is_compressed_wherever_its_layers_can_be_reached():
    x = images()
    model = called(Network(), x)
    expected, weights = np.asarray(model(x)), len(model.weights)
    plan = Plan.uniform(model, rank_ratio=1)
    assert len(plan.layers) == 4 and "part/inside" in plan.layers and not plan.skipped
    with pytest.warns(match="without its"):
        model.extra = lambda: 3  # an attribute is no method of the class
        type(model).train_step = lambda self, data: {}
        small = apply(model, plan)
    del type(model).train_step
    np.testing.assert_allclose(small(x), expected, atol=1e-4)
    kinds = [type(layer).__name__ for layer in graph.layers(small).values()]
    assert kinds.count("DecomposedConv2D") == 4
    np.testing.assert_allclose(densify(model, small)(x), expected, atol=1e-4)
    np.testing.assert_array_equal(model(x), expected)
    assert len(model.weights) == weights
    # Batch norms still know when they are trained.
    before = [w.numpy() for w in small.non_trainable_weights]
    small(x, training=True)
    assert not all(map(np.array_equal, before, [w.numpy() for w in small.non_trainable_weights]))


def test_compile_state_comes_along():
    model = called(Network(), images())
    model.compile(loss="mse", optimizer="sgd")
    assert graph.compiled_loss(normal(model))[0] == "mse"


@pytest.mark.parametrize("times", [1, 2])
def test_blocks_inside_of_blocks_in_a_functional_model(times):
    class Outer(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.inner = Residual(4)

        def call(self, x):
            return keras.ops.relu(self.inner(x))

    inputs = keras.Input((10, 9, 3))
    x = layers.Conv2D(4, 3)(inputs)
    for _ in range(times):
        x = Outer()(x)
    model = called(keras.Model(inputs, layers.Flatten()(x)), images())
    small = apply(model, Plan.uniform(model, rank_ratio=1))
    assert len(small.espace_plan.layers) == 1 + 2 * times
    np.testing.assert_allclose(small(images()), model(images()), atol=1e-3)


class Single(layers.Layer):
    """One convolution."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.first = layers.Conv2D(filters, 3, padding="same")

    def build(self, shape):
        self.first.build(shape)

    def get_config(self):
        return {**super().get_config(), "filters": self.first.filters}


class WithTensorFlow(Single):
    def call(self, x):
        return tf.nn.relu(self.first(x))


class WithWeights(Single):
    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return self.first(x) * self.scale


class OtherInTraining(Single):
    def call(self, x, training=None):
        x = self.first(x)
        return x * 2 if training else x


class WithLoss(Single):
    def call(self, x):
        x = self.first(x)
        self.add_loss(keras.ops.mean(x))
        return x


@pytest.mark.parametrize("kind", [WithTensorFlow, WithWeights, OtherInTraining, WithLoss])
def test_what_a_graph_would_not_tell_is_left_alone(kind):
    inputs = keras.Input((10, 9, 3))
    model = keras.Model(inputs, kind(4, name="block")(layers.Conv2D(4, 3, name="conv")(inputs)))
    plan = Plan.uniform(model)
    assert set(plan.layers) == {"conv"}
    assert all("is left alone" in reason for reason in plan.skipped.values())
    assert "block" in graph.layers(apply(model, plan))


def test_where_nothing_can_be_reached_the_parts_are_named():
    class Opaque(Network):
        def build(self, shape):
            self.stem.build(shape)

        def call(self, x, training=False):
            return tf.reduce_mean(self.part(self.stem(x)), axis=(1, 2))

    model = called(Opaque(), images())
    (reason, *_) = {site.skip for site in read_sites(model)}
    assert "model.part = compress(model.part, ...)" in reason
    assert "call it once on data" in without_graph(keras.Model())


@pytest.mark.parametrize("sequential", [False, True])
def test_separable_convolutions_become_two_layers(sequential):
    own = [
        layers.SeparableConv2D(6, 3, strides=2, padding="same", depth_multiplier=2, name="a"),
        layers.SeparableConv2D(
            5, (3, 3), dilation_rate=2, padding="same", activation="tanh", name="b"
        ),
        layers.SeparableConv2D(4, 2, use_bias=False, name="c"),
    ]
    model = keras.Sequential([keras.Input((10, 9, 3)), *own])
    if not sequential:
        inputs = keras.Input((10, 9, 3))
        x = own[0](inputs)
        model = keras.Model(inputs, own[2](own[1](x)))
    model = called(model, images())
    expected = np.asarray(model(images()))
    read = normal(model)
    assert list(graph.layers(read)) == [f"{n}{end}" for n in "abc" for end in ("_depthwise", "")]
    np.testing.assert_allclose(read(images()), expected, atol=1e-5)
    plan = Plan.uniform(model, rank_ratio=0.5)
    assert all("depthwise" in plan.skipped[f"{name}_depthwise"] for name in "abc")
    sites = {site.path: site for site in read_sites(read)}
    assert sites["b"].kernel_size == (1, 1) and sites["b"].skip is None
    small = apply(model, Plan(layers={"b": plan_of_rank(5)}))
    np.testing.assert_allclose(small(images()), expected, atol=1e-4)
    assert type(graph.layers(small)["b"]).__name__ == "DecomposedConv2D"


def plan_of_rank(rank):
    from espace_tf.records.layer_plan import LayerPlan

    return LayerPlan(rank=rank)
