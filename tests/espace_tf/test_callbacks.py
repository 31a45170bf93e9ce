"""Callbacks in plain fit, of both libraries."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf import keras_layers
from espace_tf.callbacks import (
    CompressionSummary,
    Fade,
    GradualMasks,
    ReestimateBatchNorm,
    reestimate_batch_norm,
)
from espace_tf.schedules import ConstantSchedule, PolynomialDecay

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
POSITIONS = [0, 9, 20, 35]


def masked_network(library, jit_compile=False):
    ours = keras_layers.for_library(library)
    inputs = library.Input((6, 6, 2))
    x = ours.MaskedConv2D(3, 3, padding="same", positions=POSITIONS, name="masked")(inputs)
    x = library.layers.BatchNormalization(name="norm")(x)
    x = ours.DecomposedConv2D(4, 3, 2, padding="same", positions=POSITIONS, name="pair")(x)
    x = library.layers.GlobalAveragePooling2D()(x)
    model = library.Model(inputs, library.layers.Dense(2)(x))
    model.compile("sgd", "mse", jit_compile=jit_compile)
    return model


def samples(count=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(2.0, 3.0, size=(count, 6, 6, 2)).astype("float32")
    return x, rng.normal(size=(count, 2)).astype("float32")


@pytest.mark.parametrize(("folder", "error"), [(None, TypeError), ("", ValueError)])
def test_a_folder_that_is_none_is_refused(folder, error):
    with pytest.raises(error, match="log_dir must be a path"):
        CompressionSummary(folder)


def test_a_schedule_that_gives_no_number_is_refused():
    model, (x, y) = masked_network(keras), samples(4)
    with pytest.raises(TypeError, match="schedule must give a fade .*Received: 'half'"):
        model.fit(x, y, callbacks=[GradualMasks(lambda step: "half")], verbose=0)


def watch(library):
    class Watch(library.callbacks.Callback):
        def __init__(self, fade=None):
            super().__init__()
            self.fades, self.between, self.callback = [], [], fade

        def on_train_batch_end(self, batch, logs=None):
            self.fades.append(float(self.callback._fade.variable.numpy()))
            self.between.append(self.model.get_layer("masked").fade)

    return Watch


@pytest.mark.parametrize(
    ("library", "jit_compile"), [(keras, False), (keras, True), (tf_keras, False)]
)
def test_the_fade_follows_the_schedule_without_tracing_again(library, jit_compile):
    model, (x, y) = masked_network(library, jit_compile=jit_compile), samples()
    traces = []
    original = model.train_step
    model.train_step = lambda data: traces.append(1) or original(data)
    schedule = PolynomialDecay(end_step=6, power=1.0)
    masks = GradualMasks(schedule)
    watcher = watch(library)(masks)
    history = model.fit(
        x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[masks, watcher]
    )
    assert watcher.fades == pytest.approx([schedule(step) for step in range(16)])
    assert watcher.between == [None] * 16
    assert history.history["fade"] == pytest.approx([1.0, 1.0])
    assert len(traces) <= 2, f"{len(traces)} traces (one more is Keras 3's symbolic build)"


@LIBRARIES
@pytest.mark.parametrize(
    "options", [{"steps_per_execution": 3}, {"run_eagerly": True}, {"jit_compile": True}], ids=str
)
def test_the_fade_is_right_under_every_setting_of_compile(library, options):
    (x, y), ends = samples(56), []
    for more in ({}, options):
        library.utils.set_random_seed(1)
        model = masked_network(library)
        model.compile(library.optimizers.SGD(0.05), "mse", **{"jit_compile": False, **more})
        masks = GradualMasks(PolynomialDecay(end_step=6, power=1.0))
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[masks])
        ends.append(model.get_weights())
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@LIBRARIES
def test_training_uses_the_fade_and_inference_the_mask(library):
    """A fade of 0 takes the step of the same network without masks; a fade of 1 the masked one."""
    (x, y), steps = samples(8), {}
    for fade in (0.0, 1.0, None):
        library.utils.set_random_seed(1)
        model = masked_network(library)
        before = model.predict(x, verbose=0)
        masks = [] if fade is None else [GradualMasks(ConstantSchedule(fade))]
        model.fit(x, y, batch_size=8, verbose=0, callbacks=masks)
        steps[fade] = model.get_layer("masked").get_weights()[0]
        assert not np.allclose(model.predict(x, verbose=0), before)
    np.testing.assert_allclose(steps[1.0], steps[None], atol=1e-5)
    assert np.abs(steps[0.0] - steps[None]).max() > 1e-4


@LIBRARIES
def test_the_next_fit_is_the_plain_one(library):
    (x, y), ends = samples(8), []
    for faded in (False, True):
        library.utils.set_random_seed(1)
        model = masked_network(library)
        weights = model.get_weights()
        if faded:
            model.fit(x, y, verbose=0, callbacks=[GradualMasks(ConstantSchedule(0.0))])
            model.set_weights(weights)
        assert model.get_layer("masked").fade is None
        model.fit(x, y, batch_size=8, verbose=0)
        ends.append(model.get_weights())
    for plain, after in zip(*ends, strict=True):
        np.testing.assert_allclose(after, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("library", "where"), [(keras, "step"), (keras, "callback"), (tf_keras, "callback")]
)
def test_a_fit_that_breaks_off_leaves_no_fade_behind(library, where):
    class Break(library.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if where == "callback":
                raise KeyboardInterrupt

    def numbers():
        yield samples(8)
        raise OSError("the disk is gone")

    x, y = samples(8)
    library.utils.set_random_seed(1)
    model = masked_network(library)
    weights = model.get_weights()
    kinds = tuple(tf.TensorSpec((None, *array.shape[1:]), tf.float32) for array in (x, y))
    data = tf.data.Dataset.from_generator(numbers, output_signature=kinds)
    masks = [GradualMasks(ConstantSchedule(0.0)), Break()]
    with pytest.raises((KeyboardInterrupt, tf.errors.OpError)):
        model.fit(data, verbose=0, callbacks=masks, shuffle=False)
    assert model.get_layer("masked").fade is None
    model.set_weights(weights)
    model.fit(x, y, batch_size=8, verbose=0)
    after = model.get_weights()
    library.utils.set_random_seed(1)
    plain = masked_network(library)
    plain.set_weights(weights)
    plain.fit(x, y, batch_size=8, verbose=0)
    for one, other in zip(after, plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_fade_of_a_model_that_was_saved_meanwhile_is_not_in_the_file(tmp_path):
    model = masked_network(keras)
    with Fade(model):
        model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("masked").fade is None
    assert len(again.weights) == len(model.weights)


def test_a_model_without_masks_is_refused():
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match="needs a model with masked layers"):
        Fade(model)
    with pytest.raises(TypeError, match="schedule must be a function.*0.5"):
        GradualMasks(0.5)


def normed(library, axis=-1):
    inputs = library.Input((6, 6, 2))
    x = library.layers.BatchNormalization(name="first", scale=False)(inputs)
    x = library.layers.Conv2D(3, 3, name="conv")(x)
    x = library.layers.Dropout(0.5)(x)
    x = library.layers.BatchNormalization(axis=axis, name="second", center=False)(x)
    return library.Model(inputs, x)


@LIBRARIES
@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_norm_statistics_are_those_of_the_data(library, axis):
    model, (x, _) = normed(library, axis), samples(64)
    assert reestimate_batch_norm(model, x, batch_size=64) == 2
    wide = x.astype("float64")
    first, second = model.get_layer("first"), model.get_layer("second")
    np.testing.assert_allclose(first.moving_mean.numpy(), wide.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(first.moving_variance.numpy(), wide.var((0, 1, 2)), rtol=1e-4)
    normal = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + first.epsilon)
    after = model.get_layer("conv")(normal.astype("float32")).numpy().astype("float64")
    others = (0, 1, 2) if axis == -1 else (0, 2, 3)
    np.testing.assert_allclose(second.moving_mean.numpy(), after.mean(others), atol=1e-4)
    np.testing.assert_allclose(second.moving_variance.numpy(), after.var(others), rtol=1e-3)


def test_of_endless_data_so_many_batches_are_read_as_asked_for():
    x, read = samples(40)[0], []

    def forever():
        for place in itertools.cycle(range(0, 40, 8)):
            read.append(place)
            yield x[place : place + 8]

    signature = tf.TensorSpec((8, *x.shape[1:]))
    endless = tf.data.Dataset.from_generator(forever, output_signature=signature)
    statistics = []
    for data in (endless, tf.data.Dataset.from_tensor_slices(x).batch(8)):
        model = normed(keras)
        reestimate_batch_norm(model, data, 5)
        statistics.append(model.get_layer("first").moving_mean.numpy())
    np.testing.assert_array_equal(*statistics)
    assert len(read) < 20  # shapes are looked at before, and some batches wait


def test_batches_are_pooled_by_the_law_of_total_variance():
    model, (x, _) = normed(keras), samples(50)
    x[:25] += 7.0
    data = tf.data.Dataset.from_tensor_slices(x).batch(16)  # the last one is smaller
    assert reestimate_batch_norm(model, data) == 2
    first = model.get_layer("first")
    np.testing.assert_allclose(first.moving_mean.numpy(), x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(first.moving_variance.numpy(), x.var((0, 1, 2)), rtol=1e-4)


@LIBRARIES
def test_frozen_layers_keep_their_statistics(library):
    model, (x, _) = normed(library), samples()
    model.get_layer("first").trainable = False
    assert reestimate_batch_norm(model, x) == 1
    assert model.get_layer("first").moving_mean.numpy().tolist() == [0.0, 0.0]
    model.trainable = False
    assert reestimate_batch_norm(model, x) == 0
    with pytest.raises(ValueError, match="batches must be at least 1.*0"):
        reestimate_batch_norm(model, x, 0)
    with pytest.raises(ValueError, match="data is empty|equally many"):
        reestimate_batch_norm(model, x[:0])


@LIBRARIES
def test_statistics_are_fresh_in_every_validation(library):
    model, (x, y) = masked_network(library), samples()
    seen = []

    class Look(library.callbacks.Callback):
        def on_test_batch_begin(self, batch, logs=None):
            seen.append(self.model.get_layer("norm").moving_mean.numpy())

    callbacks = [ReestimateBatchNorm(x, batch_size=64), Look()]
    options = {"batch_size": 64, "verbose": 0, "callbacks": callbacks}
    model.fit(x, y, validation_data=(x, y), epochs=2, **options)
    for mean in (seen[1], model.get_layer("norm").moving_mean.numpy()):
        expected = model.get_layer("masked")(x).numpy().mean((0, 1, 2))
        np.testing.assert_allclose(mean, expected, atol=1e-4)
    assert len(seen) == 2


@LIBRARIES
def test_the_summary_is_written_for_tensorboard(library, tmp_path):
    model, (x, y) = masked_network(library), samples()
    masks = GradualMasks(ConstantSchedule(0.5))
    model.fit(x, y, verbose=0, callbacks=[masks, CompressionSummary(tmp_path)])
    (file,) = (tmp_path / "espace").glob("events*")
    values = {}
    for record in tf.data.TFRecordDataset(str(file)):
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
            values[value.tag] = tf.make_ndarray(value.tensor)
    assert values["espace/pair/rank"] == 2
    assert values["espace/masked/keep_fraction"] == pytest.approx(4 / 36)
    assert values["espace/fade"] == 0.5
    assert values["espace/total/parameters"] == model.count_params()
    image = tf.io.decode_png(values["espace/masked/mask"][2])[..., 0].numpy()
    assert np.flatnonzero(image).tolist() == POSITIONS and image.shape == (6, 6)
    assert b"| pair | 2 | vertical | 11% |" in values["espace/layers"].item()
