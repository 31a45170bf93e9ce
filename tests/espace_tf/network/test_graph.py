"""Sites, recorded calls and copies of Keras models, in both Keras libraries."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.config import EspaceWarning
from espace_tf.network import graph, recording
from espace_tf.network.copies import cloning
from espace_tf.network.sites import read_sites

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def conv(library, name, filters=4, **options):
    options = {"padding": "same", **options}
    return library.layers.Conv2D(filters, 3, name=name, **options)


def sequential(library, shape, layers, name):
    first = library.Input(shape) if library is keras else library.layers.InputLayer(shape)
    return library.Sequential([first, *layers], name=name)


def functional(library, inputs, outputs, name="net"):
    return library.Model(inputs, outputs, name=name)


def chain(library):
    x = library.Input((8, 8, 3))
    y = conv(library, "first", activation="relu", kernel_regularizer="l2")(x)
    y = library.layers.Dropout(0.5, name="drop")(y)
    y = conv(library, "second", strides=2, use_bias=False)(y)
    y = library.layers.BatchNormalization(name="norm")(y)
    return functional(library, x, library.layers.Flatten(name="flat")(y))


def nested(library):
    inner = sequential(library, (8, 8, 4), [conv(library, "deep")], "innermost")
    x = library.Input((8, 8, 4))
    middle = functional(library, x, inner(conv(library, "mid")(x)), "middle")
    return sequential(library, (8, 8, 3), [conv(library, "top"), middle], "outer")


def shared(library):
    layer, x = conv(library, "both"), library.Input((8, 8, 4))
    return functional(library, x, layer(layer(x)))


def shared_sizes(library):
    layer, x = conv(library, "both"), library.Input((8, 8, 4))
    return functional(library, x, layer(library.layers.MaxPooling2D()(layer(x))))


def inner_twice(library):
    inner = sequential(library, (8, 8, 3), [conv(library, "c", 3)], "inner")
    x = library.Input((8, 8, 3))
    return functional(library, x, inner(inner(x)))


def several(library):
    a, b = library.Input((8, 8, 3), name="a"), library.Input((8, 8, 3), name="b")
    y = library.layers.Add(name="sum")([conv(library, "left")(a), conv(library, "right")(b)])
    return functional(library, {"a": a, "b": b}, {"map": y, "through": a})


def frozen(library):
    model = chain(library)
    graph.layers(model)["first"].trainable = False
    return model


def lambdas(library):
    x = library.Input((8, 8, 3))
    y = library.layers.Lambda(lambda t: 2 * t, name="double", output_shape=(8, 8, 3))(x)
    return functional(library, x, conv(library, "c")(y))


def operators(library):
    x = library.Input((8, 8, 3))
    y = conv(library, "c")(x) * 2 + 1
    y = keras.ops.relu(y) if library is keras else tf.nn.relu(y)
    return functional(library, x, (y + conv(library, "d")(y))[:, 1:, :, ::2])


def attention(library):
    x = library.Input((8, 8, 3))
    y = library.layers.Reshape((64, 4))(conv(library, "c")(x))
    return functional(library, x, library.layers.MultiHeadAttention(2, 4)(query=y, value=y, key=y))


def adapted(library):
    norm, x = library.layers.Normalization(name="adapted"), library.Input((8, 8, 3))
    norm.adapt(np.random.default_rng(0).normal(3, 2, (16, 8, 8, 3)))
    return functional(library, x, conv(library, "c")(norm(x)))


MODELS = [chain, nested, shared, shared_sizes, inner_twice, several, frozen, lambdas]
MODELS += [operators, attention, adapted]
EACH = pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)


def random_inputs(model, seed=0):
    random = np.random.default_rng(seed)
    made = [tf.constant(random.normal(size=(2, *t.shape[1:])), tf.float32) for t in model.inputs]
    if isinstance(model, graph.library(model).Sequential):
        return made[0]
    return tf.nest.pack_sequence_as(model.input, made)


def outputs(model):
    return [np.asarray(value) for value in tf.nest.flatten(model(random_inputs(model)))]


def state(model):
    return model.get_config(), [np.array(weight) for weight in model.get_weights()], outputs(model)


@LIBRARIES
@EACH
def test_a_copy_computes_the_same_and_the_original_is_untouched(library, build):
    library.utils.set_random_seed(3)
    model = build(library)
    config, weights, before = state(model)
    copy = cloning.clone(model, lambda path, layer: None)
    assert graph.library(copy) is library
    for layer, other in zip(graph.layers(model).values(), graph.layers(copy).values(), strict=True):
        assert layer is not other and layer.name == other.name
        assert layer.trainable == other.trainable
    assert [w.shape for w in copy.trainable_weights] == [w.shape for w in model.trainable_weights]
    for ours, theirs in zip(outputs(copy), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for weight in copy.trainable_weights:
        weight.assign_add(tf.ones_like(weight))
    after = state(model)
    assert after[0] == config
    for ours, theirs in zip((*after[1], *after[2]), (*weights, *before), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@LIBRARIES
def test_compile_state_and_input_names_are_carried(library):
    model = several(library)
    loss = {"map": "mse", "through": "mae"}
    model.compile(library.optimizers.Adam(0.0125), loss=loss)
    copy = cloning.clone(model, lambda path, layer: None)
    assert float(copy.optimizer.learning_rate.numpy()) == pytest.approx(0.0125)
    assert [t.name.split(":")[0] for t in copy.inputs] == [
        t.name.split(":")[0] for t in model.inputs
    ]
    data = {name: np.ones((2, 8, 8, 3), np.float32) for name in "ab"}
    targets = {"map": np.ones((2, 8, 8, 4), np.float32), "through": data["a"]}
    copy.fit(data, targets, verbose=0)


@LIBRARIES
def test_a_loss_that_keras_cannot_save_is_carried(library):
    class Scaled(library.losses.Loss):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, wanted, found):
            return self.factor * tf.reduce_mean((wanted - found) ** 2, axis=-1)

    model, x = shared(library), np.ones((2, 8, 8, 4), np.float32)
    for loss in (Scaled(2.0), lambda wanted, found: (wanted - found) ** 2):
        model.compile("sgd", loss, metrics=[library.metrics.MeanSquaredError(name="error")])
        model.optimizer.learning_rate = 0.0  # after compile: the present value counts
        copy = cloning.clone(model, lambda path, layer: None)
        assert copy.optimizer is not model.optimizer
        history = copy.fit(x, 0 * x, verbose=0).history
        assert history == model.fit(x, 0 * x, verbose=0).history


@LIBRARIES
def test_an_optimizer_that_cannot_be_rebuilt_is_left_out_with_a_warning(library):
    class Odd(library.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.01

    model = shared(library)
    model.compile(library.optimizers.SGD(Odd()), "mse")
    with pytest.warns(EspaceWarning, match="not compiled"):
        copy = cloning.clone(model, lambda path, layer: None)
    np.testing.assert_array_equal(outputs(copy)[0], outputs(model)[0])


@LIBRARIES
def test_sites_tell_geometry_and_order(library):
    first, second = read_sites(chain(library))
    assert (first.path, first.kind, first.activation) == ("first", "conv", "relu")
    assert (first.input_sizes, first.output_sizes) == (((8, 8),), ((8, 8),))
    assert (second.strides, second.output_sizes) == ((2, 2), ((4, 4),))
    assert not second.use_bias and second.in_channels == 4 and second.skip is None
    assert [site.path for site in read_sites(nested(library))] == [
        "top",
        "middle/mid",
        "middle/innermost/deep",
    ]


@LIBRARIES
def test_a_shared_layer_is_one_site_with_every_call(library):
    (site,) = read_sites(shared(library))
    assert site.input_sizes == ((8, 8), (8, 8)) and site.mask_skip is None
    (site,) = read_sites(shared_sizes(library))
    assert site.input_sizes == ((8, 8), (4, 4)) and "different sizes" in site.mask_skip
    (site,) = read_sites(inner_twice(library))
    assert site.input_sizes == ((8, 8), (8, 8))


@LIBRARIES
def test_what_cannot_be_touched_says_why(library):
    layers, x = library.layers, library.Input((12, 12, 4))
    y = layers.DepthwiseConv2D(3, name="depth")(x)
    y = layers.Conv2D(8, 3, groups=4, padding="same", name="grouped")(y)
    y = layers.SeparableConv2D(4, 3, name="separable")(y)
    y = layers.Conv2DTranspose(4, 3, name="transpose")(y)
    y = layers.Reshape((1, *y.shape[1:]))(y)
    y = layers.TimeDistributed(conv(library, "timed"), name="time")(y)
    reasons = {site.path: site.skip for site in read_sites(functional(library, x, y))}
    assert "depthwise" in reasons["depth"] and "factored" in reasons["separable"]
    assert "depthwise" in reasons["grouped"]  # one channel a group
    assert "transposed" in reasons["transpose"] and "TimeDistributed" in reasons["time/timed"]

    x = library.Input((4, 8, 8))
    first = functional(library, x, conv(library, "c", data_format="channels_first")(x))
    if library is keras:  # TensorFlow on a CPU runs it under Keras 3 only.
        assert "channels_first" in read_sites(first)[0].skip
    x = library.Input((None, None, 3))
    (site,) = read_sites(functional(library, x, conv(library, "c")(x)))
    assert site.skip is None and "not known" in site.mask_skip


@LIBRARIES
def test_a_subclass_and_a_subclassed_model_are_left_alone(library):
    class Odd(library.layers.Conv2D):
        pass

    class Own(library.Model):
        def __init__(self):
            super().__init__()
            self.conv = conv(library, "hidden")

        def call(self, x):
            return self.conv(x)

    x = library.Input((8, 8, 3))
    (odd,) = read_sites(functional(library, x, Odd(4, 3)(x)))
    assert "subclass of Conv2D" in odd.skip
    model = Own()
    model(tf.zeros((1, 8, 8, 3)))
    (hidden,) = read_sites(model)
    assert "inside" in hidden.skip
    with pytest.raises(ValueError, match="functional API"):
        cloning.clone(model, lambda path, layer: None)


@LIBRARIES
def test_a_functional_subclass_with_a_call_of_its_own_is_left_alone(library):
    class Tripled(library.Model):
        def __init__(self, name=None):
            x = library.Input((8, 8, 4))
            super().__init__(inputs=x, outputs=conv(library, "inside")(x), name=name)

        def call(self, inputs, training=None):
            return 3 * super().call(inputs)

        def get_config(self):
            return {"name": self.name}

        @classmethod
        def from_config(cls, config):
            return cls(**config)

    with pytest.raises(ValueError, match="call of its own"):
        cloning.clone(Tripled(), lambda path, layer: None)
    x = library.Input((8, 8, 3))
    model = functional(library, x, Tripled(name="triple")(conv(library, "before")(x)))
    reasons = {site.path: site.skip for site in read_sites(model)}
    assert reasons["before"] is None and "Tripled" in reasons["triple/inside"]
    copy = cloning.clone(model, lambda path, layer: None)
    np.testing.assert_array_equal(outputs(copy)[0], outputs(model)[0])


def test_what_is_no_built_model_is_refused():
    with pytest.raises(TypeError, match="keras.Model"):
        read_sites(3)
    with pytest.raises(ValueError, match="input shape"):
        read_sites(keras.Sequential([keras.layers.Conv2D(4, 3)]))


@LIBRARIES
def test_record_sees_calls_replaces_them_and_leaves_nothing_behind(library):
    model = shared(library)
    x = random_inputs(model)
    plain = outputs(model)
    with recording.record(model, ["both"]) as calls:
        found = model(x)
    assert [call.path for call in calls] == ["both", "both"]
    np.testing.assert_array_equal(calls[1].outputs, found)
    with pytest.raises(ZeroDivisionError):
        with recording.record(model, ["both"], lambda path, layer, inputs, call: 0 * call(inputs)):
            assert not np.any(model(x))
            raise ZeroDivisionError
    assert "call" not in vars(graph.layers(model)["both"])
    np.testing.assert_array_equal(outputs(model)[0], plain[0])
    with pytest.raises(ValueError, match="nowhere"), recording.record(model, ["nowhere"]):
        pass


@LIBRARIES
def test_record_reaches_predict_and_leaves_its_traced_function_as_it_was(library):
    model = shared(library)
    x = random_inputs(model)
    for _ in range(2):  # before and after predict was traced
        with recording.record(model, ["both"], lambda path, layer, inputs, call: 0 * call(inputs)):
            assert not np.any(model.predict(x, verbose=0))
        np.testing.assert_allclose(model.predict(x, verbose=0), outputs(model)[0], atol=1e-5)


@LIBRARIES
def test_record_nests_and_takes_inputs_given_by_keyword(library):
    model = attention(library)
    (path,) = (path for path in graph.layers(model) if path.startswith("multi"))
    with recording.record(model, [path]) as outer:
        with recording.record(model, [path], lambda path, layer, inputs, call: 0 * call(inputs)):
            assert not np.any(outputs(model)[0])
        assert np.any(outputs(model)[0])
    assert len(outer) == 2 and outer[0].inputs.shape == (2, 64, 4)


@LIBRARIES
def test_sites_leave_no_symbolic_losses(library):
    x = library.Input((8, 8, 3))
    model = functional(library, x, conv(library, "c", activity_regularizer="l2")(x))
    before = [type(loss) for loss in model.losses]
    read_sites(model)
    assert [type(loss) for loss in model.losses] == before


@LIBRARIES
def test_fingerprint_is_of_the_architecture(library):
    model = chain(library)
    before = graph.fingerprint(model)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert graph.fingerprint(model) == before
    assert graph.fingerprint(shared(library)) != before

    def small(side, **options):
        x = library.Input((side, side, 3))
        return graph.fingerprint(functional(library, x, conv(library, "c", **options)(x)))

    assert small(8) == small(8)
    assert len({small(8), small(9), small(8, strides=2), small(8, padding="valid")}) == 4


@LIBRARIES
def test_a_single_consumer_alone_reads_a_layer_called_once(library):
    consumers = [("first", "drop"), ("drop", "second"), ("second", "norm"), ("norm", "flat")]
    assert sorted(graph.single_consumers(chain(library))) == sorted(consumers)
    layers, x = library.layers, library.Input((8, 8, 3))
    y = conv(library, "c")(x)
    z = layers.Add(name="sum")([layers.BatchNormalization(name="norm")(y), y])
    assert graph.single_consumers(functional(library, x, z)) == [("norm", "sum")]
    layer, norm = conv(library, "c", 3), layers.BatchNormalization()
    twice = functional(library, x, norm(layer(norm(layer(x)))))
    assert graph.single_consumers(twice) == []
    y = conv(library, "c")(x)
    shown = functional(library, x, [layers.BatchNormalization()(y), y])
    assert graph.single_consumers(shown) == []
