"""Fine-tuning: recovery, every kind of data and model, what stays as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from finetuning_networks import (
    LIBRARIES,
    SLOW_TF_KERAS,
    accuracy,
    network,
    student_of,
    task,
    trained,
)

from espace_tf import callbacks
from espace_tf.config import EspaceWarning
from espace_tf.network.copies import cloning
from espace_tf.training import learning_rate, loop
from espace_tf.training.fine_tune import fine_tune
from espace_tf.training.steps.step import LossScale


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        *((keras, None), (keras, "mixed_float16"), (tf_keras, None), (tf_keras, "mixed_float16")),
        pytest.param(keras, "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_compressed_network_recovers(library, dtype):
    if library is tf_keras and dtype == "mixed_float16":
        tf.get_logger().setLevel("ERROR")
    teacher = trained(library)
    frozen = teacher.get_weights()
    student = student_of(teacher, library, dtype=dtype)
    x, y = task(512, seed=99)
    before, goal = accuracy(student, x, y), accuracy(teacher, x, y)
    options = {"validation_data": (x, y), "verbose": 0}
    history = fine_tune(student, task(2048), teacher=teacher, epochs=2, **options)
    after = accuracy(student, x, y)
    losses = history.history
    assert isinstance(history, library.callbacks.History)
    assert goal > 0.9 and after > before and after > goal - 0.05, f"{before} {after} {goal}"
    assert losses["val_feature_loss"][1] < losses["val_feature_loss"][0]
    outputs = losses["task_loss"][1] + 0.5 * losses["distillation_loss"][1]
    assert outputs < losses["loss"][1] <= (outputs + losses["feature_loss"][1]) * 1.001
    assert history.best_epoch in (1, 2) and history.learning_rate in learning_rate.RATES
    for one, other in zip(frozen, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@SLOW_TF_KERAS
def test_the_teacher_alone_is_enough(library):
    teacher = trained(library)
    student = student_of(teacher, library)
    x, y = task(512, seed=99)
    data = tf.data.Dataset.from_tensor_slices(task(2048)[0]).batch(30)
    history = fine_tune(student, data, teacher=teacher, epochs=2, validation_data=x, verbose=0)
    assert "task_loss" not in history.history
    assert history.history["val_distillation_loss"][1] < 1.0
    assert accuracy(student, x, y) > accuracy(teacher, x, y) - 0.05


@LIBRARIES
def test_nan_stops_with_the_last_good_weights(library):
    student = trained(library)
    x, y = task(128)
    x[100:] = np.inf
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    with pytest.raises(FloatingPointError, match="epoch 1, batch 1[13]: .*smaller"):
        adam = library.optimizers.Adam(1e-3)
        fine_tune(student, data, checkpoint_every=5, optimizer=adam, keep_best=False, verbose=0)
    assert all(np.isfinite(weight).all() for weight in student.get_weights())
    x, y = task(128)
    expected = trained(library)
    options = {"optimizer": library.optimizers.SGD(1e30), "batch_norm_batches": 0, "verbose": 0}
    with pytest.raises(FloatingPointError):
        fine_tune(student := trained(library), (x, y), epochs=3, checkpoint_every=1, **options)
    assert all(np.isfinite(weight).all() for weight in student.get_weights())
    assert len(expected.weights) == len(student.weights)


@LIBRARIES
def test_several_outputs_weights_and_a_compiled_loss(library):
    teacher, student = network(library, outputs=2), network(library, outputs=2)
    x, y = task(96)
    size = x.mean((1, 2))
    losses = [library.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"]
    student.compile("sgd", loss=losses, metrics=[["accuracy"], ["mae"]], loss_weights=[1.0, 3.0])
    optimizer = student.optimizer
    data = tf.data.Dataset.from_tensor_slices((x, (y, size))).batch(32)
    options = {"validation_data": data, "keep_best": False, "verbose": 0}
    history = fine_tune(student, data, teacher=teacher, **options).history
    assert student.optimizer is optimizer and student.loss is not None
    names = {"loss", "task_loss", "distillation_loss", "feature_loss", "class_accuracy", "size_mae"}
    assert names <= set(history), set(history)
    classes, sizes = student.predict(x, verbose=0)
    logs = np.log(np.exp(classes).sum(-1)) - classes[np.arange(96), y]
    expected = logs.mean() + 3 * ((sizes - size) ** 2).mean()
    assert history["val_task_loss"][0] == pytest.approx(expected, rel=1e-3)


@LIBRARIES
def test_regression_with_sample_weights_and_regularisation(library):
    inputs = library.Input((6, 6, 1))
    x = library.layers.Conv2D(4, 3, kernel_regularizer="l2", name="conv")(inputs)
    x = library.layers.GlobalAveragePooling2D()(x)
    model = library.Model(inputs, library.layers.Dense(1)(x))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(64, 6, 6, 1)).astype("float32"), rng.normal(size=(64, 1))
    weight = rng.random(64).astype("float32")
    data = (x, y.astype("float32"), weight)
    options = {"loss": "mse", "metrics": ["mae"], "verbose": 0, "batch_norm_batches": 0}
    options["keep_best"] = False
    history = fine_tune(model, data, validation_data=data, batch_size=64, **options).history
    kernel = model.get_layer("conv").get_weights()[0]
    errors = ((model.predict(x, verbose=0) - y)[:, 0] ** 2 * weight).mean()
    expected = errors + 0.01 * (kernel**2).sum()
    assert history["val_loss"][0] == pytest.approx(expected, rel=1e-3)
    assert "val_mae" in history and "accuracy" not in history


@LIBRARIES
def test_frozen_layers_and_given_optimizers(library):
    teacher = trained(library)
    student = student_of(teacher, library)
    student.get_layer("conv1").trainable = student.get_layer("norm1").trainable = False
    kept = student.get_layer("conv1").get_weights() + student.get_layer("norm1").get_weights()
    moved = student.get_layer("conv3").get_weights()[0]
    optimizer = library.optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4)
    options = {"temperature": 5.0, "distillation_weight": 0.003, "feature_weight": 0.0005}
    with pytest.warns(EspaceWarning, match="9 of 12 weights train.*train_frozen=True"):
        fine_tune(student, task(128), teacher=teacher, optimizer=optimizer, verbose=0, **options)
    after = student.get_layer("conv1").get_weights() + student.get_layer("norm1").get_weights()
    for one, other in zip(kept, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(moved - student.get_layer("conv3").get_weights()[0]).max() > 0
    assert int(optimizer.iterations.numpy()) == 0
    assert all(getattr(layer, "fade", None) is None for layer in student.layers)


def test_a_float16_loss_is_scaled_and_overflows_are_left_out():
    scale, applied = LossScale(), []
    start = float(scale.scale.numpy())
    good = [tf.constant([2.0 * start]), None]
    good = scale.unscaled(good)
    scale.apply(good, lambda: applied.append(good))
    assert applied[0][0].numpy().tolist() == [2.0] and applied[0][1] is None
    step = tf.function(lambda g: scale.apply([g], lambda: counter.assign_add(1)))
    counter = tf.Variable(0)
    step(tf.constant([np.inf]))
    step(tf.constant([1.0]))
    assert counter.numpy() == 1 and scale.scale.numpy() == start / 2
    scale.streak.assign(1999)
    step(tf.constant([1.0]))
    assert scale.scale.numpy() == start and scale.streak.numpy() == 0


@pytest.mark.parametrize("verbose", [0, 1])
def test_verbose(capsys, verbose):
    fine_tune(trained(keras), task(32), verbose=verbose, batch_norm_batches=0)
    printed = capsys.readouterr().out
    assert bool(printed) is bool(verbose)
    assert not {"\r", "\b", "\x1b"} & set(printed)  # it is no terminal


@LIBRARIES
def test_masks_fade_in_by_default_and_are_hard_at_the_end(library, monkeypatch):
    fades, seen = [], []
    assign = callbacks.Fade.assign
    monkeypatch.setattr(
        callbacks.Fade, "assign", lambda self, value: (fades.append(value), assign(self, value))
    )

    class Watch(library.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(self.model.get_layer("conv2").fade)

    student = student_of(trained(library), library)
    x, y = task(80)
    options = {"batch_size": 10, "epochs": 2, "verbose": 0, "callbacks": [Watch()]}
    options.update(optimizer=library.optimizers.Adam(1e-3), keep_best=False)
    history = fine_tune(student, (x, y), **options).history
    assert len(fades) == 16 and fades[0] == 0.0 and fades[8:] == [1.0] * 8
    assert all(0 < one < other for one, other in zip(fades[1:], fades[2:8], strict=False)), fades
    assert history["fade"][-1] == 1.0 and 0 < history["fade"][0] < 1
    assert set(seen) == {None} and student.get_layer("conv2").fade is None
    layer = student.get_layer("conv2")  # every skipped position shows its computed neighbour
    maps = layer(np.random.default_rng(0).normal(size=(1, 12, 12, 8)).astype("float32")).numpy()
    flat = maps.reshape(144, -1)
    assert len(np.unique(flat.round(5), axis=0)) <= len(layer.positions)

    fades.clear()
    fine_tune(student, (x, y), schedule=None, **options)
    fine_tune(network(library), (x, y), batch_size=40, verbose=0)  # no masks: nothing to fade
    assert fades == []


@LIBRARIES
def test_a_faded_step_trains_the_dense_layer_at_first(library):
    """With fade 0 the gradients are those of the layer without its mask."""
    library.utils.set_random_seed(2)
    x, y = task(8)
    found = []
    for schedule in (lambda step: 0.0, None):
        student = student_of(trained(library), library)
        if schedule is None:
            layer = student.get_layer("conv2")
            config = {**layer.get_config(), "positions": None}
            rebuilt = type(layer).from_config(config)
            student = replaced(student, library, rebuilt)
        options = {"optimizer": library.optimizers.SGD(0.1), "batch_norm_batches": 0}
        options["keep_best"] = False
        fine_tune(student, (x, y), batch_size=8, schedule=schedule, verbose=0, **options)
        found.append(student.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def replaced(model, library, layer):
    """The model with a layer in the place of conv2, with all weights."""
    twin = cloning.clone(model, lambda path, _: layer if path == "conv2" else None)
    twin.get_layer("conv2").set_weights(model.get_layer("conv2").get_weights())
    return twin


@LIBRARIES
def test_training_that_breaks_batch_norms_is_taken_back(library, monkeypatch):
    """Statistics that are not finite must not stay, even if every loss was finite."""
    student = trained(library)
    before = student.get_weights()

    def broken(batch_norms, inputs):
        norm = batch_norms.model.get_layer("norm2")
        norm.moving_variance.assign(np.full(norm.moving_variance.shape, np.inf, "float32"))
        return 1

    monkeypatch.setattr(loop.BatchNorms, "reestimate", broken)
    with pytest.raises(FloatingPointError, match="batch-norm statistics are not finite.* smaller"):
        fine_tune(student, task(64), checkpoint_every=1, verbose=0)
    assert all(np.isfinite(weight).all() for weight in student.get_weights())
    assert np.isfinite(student.predict(task(4)[0], verbose=0)).all()
    assert [weight.shape for weight in before] == [w.shape for w in student.get_weights()]


@LIBRARIES
def test_weights_that_break_in_the_last_step_are_taken_back(library):
    """The loss is taken before the step: only a look at the weights tells."""
    student = trained(library)
    before = student.get_weights()
    options = {"optimizer": library.optimizers.SGD(3e38), "batch_norm_batches": 0, "verbose": 0}
    options["keep_best"] = False

    def steep(y, outputs):
        return 1e6 * tf.reduce_mean(tf.square(outputs))

    with pytest.raises(FloatingPointError, match="epoch 1, batch 1: a weight is not finite"):
        fine_tune(student, task(8), batch_size=8, loss=steep, **options)
    for one, other in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_subclassed_teacher_says_nothing_of_its_inputs(library):
    class Teacher(library.Model):
        def __init__(self):
            super().__init__()
            self.dense = library.layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    teacher, x = Teacher(), np.ones((8, 4), np.float32)
    teacher(x)
    inputs = library.Input((4,))
    model = library.Model(inputs, library.layers.Dense(3)(inputs))
    history = fine_tune(model, x, teacher=teacher, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
