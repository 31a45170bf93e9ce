"""Fine-tuning: recovery, resuming after SIGKILL, data of all kinds, refusals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf import keras_layers
from espace_tf.checkpoints import Checkpoint
from espace_tf.feed import Feed
from espace_tf.finetuning import fine_tune
from espace_tf.schedules import PolynomialDecay
from espace_tf.trainer import LossScale

ROOT = Path(__file__).parents[2]
SLOW_TF_KERAS = pytest.mark.parametrize(
    "library",
    [
        pytest.param(keras, id="keras"),
        pytest.param(tf_keras, id="tf_keras", marks=pytest.mark.slow),
    ],
)
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
CLASSES = 4


def task(count, seed=0):
    """Noisy, shifted copies of four patterns."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).normal(size=(CLASSES, 12, 12, 1))
    y = rng.integers(0, CLASSES, count)
    x = np.stack([np.roll(patterns[label], rng.integers(-1, 2, 2), (0, 1)) for label in y])
    return (x + 0.5 * rng.normal(size=x.shape)).astype("float32"), y


def network(library, compressed=False, dtype=None, outputs=1, dropout=0.0):
    layers, ours = library.layers, keras_layers.for_library(library)
    options = {"padding": "same", "use_bias": False, "dtype": dtype}
    inputs = library.Input((12, 12, 1), name="image")
    x = layers.Conv2D(8, 3, name="conv1", **options)(inputs)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(name="norm1", dtype=dtype)(x))
    if compressed:
        grid = [y * 12 + z for y in range(0, 12, 2) for z in range(0, 12, 2)]
        x = ours.DecomposedConv2D(8, 3, 6, positions=grid, name="conv2", **options)(x)
    else:
        x = layers.Conv2D(8, 3, name="conv2", **options)(x)
    x = layers.ReLU(name="relu2")(layers.BatchNormalization(name="norm2", dtype=dtype)(x))
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2D(16, 3, name="conv3", **options)(x)
    x = layers.ReLU(name="relu3")(layers.BatchNormalization(name="norm3", dtype=dtype)(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    if dropout:
        x = layers.Dropout(dropout, name="drop")(x)
    heads = [layers.Dense(CLASSES, name="class", dtype="float32")(x)]
    heads += [layers.Dense(1, name="size", dtype="float32")(x)] * (outputs - 1)
    return library.Model(inputs, heads if outputs > 1 else heads[0])


def accuracy(model, x, y):
    return float((model.predict(x, verbose=0).argmax(-1) == y).mean())


def copy_weights(source, target):
    """Copies every layer, and the compressed one from a plain SVD of the dense kernel."""
    for layer in source.layers:
        twin = target.get_layer(layer.name)
        if hasattr(twin, "order"):
            kernel = layer.get_weights()[0].astype("float64")  # [a, b, c, n] -> [(a, c), (b, n)]
            a, b, c, n = kernel.shape
            left, values, right = np.linalg.svd(kernel.transpose(0, 2, 1, 3).reshape(a * c, b * n))
            left, right = left[:, : twin.rank], values[: twin.rank, None] * right[: twin.rank]
            first = left.reshape(a, 1, c, twin.rank)
            second = right.reshape(twin.rank, b, n).transpose(1, 0, 2)[None]
            twin.set_weights([first, second])
        else:
            twin.set_weights(layer.get_weights())


@pytest.fixture(scope="module")
def trained():
    """For each library: a trained teacher's weights, one for all tests."""
    made = {}

    def get(library):
        if library not in made:
            library.utils.set_random_seed(3)
            model = network(library)
            options = {"optimizer": library.optimizers.Adam(1e-2), "verbose": 0}
            fine_tune(model, task(1024), epochs=6, batch_norm_batches=20, **options)
            made[library] = model.get_weights()
        model = network(library)
        model.set_weights(made[library])
        return model

    return get


def student_of(teacher, library, **options):
    model = network(library, compressed=True, **options)
    copy_weights(teacher, model)
    return model


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        *((keras, None), (keras, "mixed_float16"), (tf_keras, None), (tf_keras, "mixed_float16")),
        pytest.param(keras, "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_compressed_network_recovers(library, dtype, trained):
    if library is tf_keras and dtype == "mixed_float16":
        tf.get_logger().setLevel("ERROR")
    teacher = trained(library)
    frozen = teacher.get_weights()
    student = student_of(teacher, library, dtype=dtype)
    x, y = task(512, seed=99)
    before, goal = accuracy(student, x, y), accuracy(teacher, x, y)
    history = fine_tune(student, task(2048), teacher=teacher, epochs=2, verbose=0)
    after = accuracy(student, x, y)
    losses = history.history
    assert isinstance(history, library.callbacks.History)
    assert goal > 0.9 and after > before and after > goal - 0.05, f"{before} {after} {goal}"
    assert losses["feature_loss"][1] < losses["feature_loss"][0]
    assert losses["loss"][1] == pytest.approx(
        losses["task_loss"][1] + 0.5 * losses["distillation_loss"][1] + losses["feature_loss"][1],
        rel=1e-3,
    )
    for one, other in zip(frozen, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@SLOW_TF_KERAS
def test_the_teacher_alone_is_enough(library, trained):
    teacher = trained(library)
    student = student_of(teacher, library)
    x, y = task(512, seed=99)
    data = tf.data.Dataset.from_tensor_slices(task(2048)[0]).batch(30)
    history = fine_tune(student, data, teacher=teacher, epochs=2, validation_data=x, verbose=0)
    assert "task_loss" not in history.history
    assert history.history["val_distillation_loss"][1] < 1.0
    assert accuracy(student, x, y) > accuracy(teacher, x, y) - 0.05


CHILD = """
import os, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
folder, name, at = sys.argv[2], sys.argv[3], int(sys.argv[4])
library = __import__(name)
sys.path.insert(0, sys.argv[1] + "/tests/espace_tf")
import test_finetuning as tests

class Kill(library.callbacks.Callback):
    seen = 0
    def on_train_batch_end(self, batch, logs=None):
        Kill.seen += 1
        if Kill.seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

tests.long_run(library, folder, callbacks=[Kill()])
"""


def long_run(library, folder, checkpoint="run", **options):
    dropout = 0.3 if library is keras else 0.0
    models = [network(library, False), network(library, True, dropout=dropout)]
    for model, name in zip(models, ("teacher", "student"), strict=True):
        with np.load(Path(folder) / f"{name}.npz") as file:
            model.set_weights([file[f"arr_{index}"] for index in range(len(model.weights))])
    history = fine_tune(
        models[1],
        task(256),
        teacher=models[0],
        epochs=3,
        validation_data=task(64, seed=5),
        schedule=PolynomialDecay(end_step=12),
        checkpoint_dir=Path(folder) / checkpoint,
        checkpoint_every=3,
        batch_norm_batches=4,
        seed=11,
        verbose=0,
        **options,
    )
    return models[1], history.history


@SLOW_TF_KERAS
def test_a_killed_run_ends_as_an_uninterrupted_one(library, trained, tmp_path):
    teacher = trained(library)
    for name, compressed in (("teacher", False), ("student", True)):
        model = network(library, compressed)
        copy_weights(teacher, model)
        np.savez(tmp_path / f"{name}.npz", *model.get_weights())
    at = int(np.random.default_rng(os.getpid()).integers(4, 24))
    command = [sys.executable, "-c", CHILD, str(ROOT), str(tmp_path), library.__name__, str(at)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "run" / "fine_tune.npz").exists()

    resumed, resumed_history = long_run(library, tmp_path)
    whole, whole_history = long_run(library, tmp_path, checkpoint="other")
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg=f"killed after batch {at}")
    assert resumed_history.keys() == whole_history.keys()
    for name, values in whole_history.items():
        assert resumed_history[name] == pytest.approx(values, abs=1e-4), (name, at)

    again, history = long_run(library, tmp_path)  # a finished run is only loaded
    np.testing.assert_array_equal(again.get_weights()[0], resumed.get_weights()[0])
    assert history == resumed_history


def test_a_checkpoint_of_another_run_is_refused(trained, tmp_path):
    teacher, data = trained(keras), task(64)
    run = {"teacher": teacher, "checkpoint_dir": tmp_path, "verbose": 0}
    student = student_of(teacher, keras)
    start = student.get_weights()
    fine_tune(student, data, **run)
    with pytest.raises(ValueError, match='another training: model weights was "'):
        fine_tune(student, data, **run)
    student.set_weights(start)
    with pytest.raises(ValueError, match="temperature was 4.0, now is 2.0"):
        fine_tune(student, data, temperature=2.0, **run)
    with pytest.raises(ValueError, match="another training: data was"):
        fine_tune(student, task(64, seed=1), **run)
    (tmp_path / "fine_tune.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is damaged .*delete it"):
        fine_tune(student, data, **run)
    for one, other in zip(start, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_keeps_every_kind_of_number(tmp_path):
    numbers = tf.cast([1.5, -2.0], tf.bfloat16).numpy()
    checkpoint = Checkpoint(tmp_path / "new" / "folder", {"epochs": 1})
    assert checkpoint.load() is None
    checkpoint.save([numbers, np.int64(3)], {"history": {"loss": [np.float32(0.5)]}})
    arrays, progress = checkpoint.load()
    assert arrays[0].view(numbers.dtype).tolist() == [1.5, -2.0] and arrays[1] == 3
    assert progress == {"history": {"loss": [0.5]}}


@LIBRARIES
def test_nan_stops_with_the_last_good_weights(library, trained):
    student = trained(library)
    x, y = task(128)
    x[100:] = np.inf
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    with pytest.raises(FloatingPointError, match="epoch 1, batch 1[13]: .*smaller"):
        fine_tune(student, data, checkpoint_every=5, verbose=0)
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
    history = fine_tune(student, data, teacher=teacher, verbose=0, validation_data=data).history
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
    history = fine_tune(model, data, validation_data=data, batch_size=64, **options).history
    kernel = model.get_layer("conv").get_weights()[0]
    errors = ((model.predict(x, verbose=0) - y)[:, 0] ** 2 * weight).mean()
    expected = errors + 0.01 * (kernel**2).sum()
    assert history["val_loss"][0] == pytest.approx(expected, rel=1e-3)
    assert "val_mae" in history and "accuracy" not in history


@LIBRARIES
def test_frozen_layers_and_given_optimizers(library, trained):
    teacher = trained(library)
    student = student_of(teacher, library)
    student.get_layer("conv1").trainable = student.get_layer("norm1").trainable = False
    kept = student.get_layer("conv1").get_weights() + student.get_layer("norm1").get_weights()
    moved = student.get_layer("conv3").get_weights()[0]
    optimizer = library.optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4)
    options = {"temperature": 5.0, "distillation_weight": 0.003, "feature_weight": 0.0005}
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
    scale.apply(good, lambda gradients: applied.append(gradients))
    assert applied[0][0].numpy().tolist() == [2.0] and applied[0][1] is None
    step = tf.function(lambda g: scale.apply([g], lambda gradients: counter.assign_add(1)))
    counter = tf.Variable(0)
    step(tf.constant([np.inf]))
    step(tf.constant([1.0]))
    assert counter.numpy() == 1 and scale.scale.numpy() == start / 2
    scale.streak.assign(1999)
    step(tf.constant([1.0]))
    assert scale.scale.numpy() == start and scale.streak.numpy() == 0


@pytest.mark.parametrize("verbose", [0, 1])
def test_verbose(trained, capsys, verbose):
    fine_tune(trained(keras), task(32), verbose=verbose, batch_norm_batches=0)
    assert bool(capsys.readouterr().out) is bool(verbose)


def test_arrays_are_shuffled_by_seed_and_epoch():
    x = np.arange(10)
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            feed = Feed((x[:, None], x), 4, seed=seed)
            batches = list(feed.epoch(epoch))
            assert feed.steps == len(batches) == 2
            again = list(Feed((x[:, None], x), 4, seed=seed).epoch(epoch, start=1))
            np.testing.assert_array_equal(again[0][1], batches[1][1])
            for inputs, labels, weight in batches:
                np.testing.assert_array_equal(inputs[:, 0], labels)
                assert weight is None
            orders[seed, epoch] = tuple(np.concatenate([labels for _, labels, _ in batches]))
    assert len(set(orders.values())) == 4
    assert [len(inputs) for inputs, *_ in Feed({"a": x, "b": x}, 4).epoch(0)] == [2, 2, 2]


def test_a_dataset_of_unknown_length_is_counted():
    data = tf.data.Dataset.range(10).batch(2).filter(lambda x: x[0] > 3)
    assert Feed(data, 32).steps == 3
    with pytest.raises(ValueError, match="data must end.*take"):
        Feed(tf.data.Dataset.range(4).batch(2).repeat(), 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1. Received: 0"),
        ({"epochs": 1.5}, "epochs must be an integer >= 1. Received: 1.5"),
        ({"temperature": 0}, "temperature must be a number > 0"),
        ({"batch_norm_batches": -1}, "batch_norm_batches must be an integer >= 0"),
        ({"data": (np.zeros((0, 12, 12, 1)), np.zeros(0))}, "empty|equally"),
        ({"data": np.zeros((4, 12, 12, 1), "float32")}, "labels.*no teacher.*teacher="),
        ({"data": (np.zeros((4, 9, 9, 1)), np.zeros(4))}, "takes shape"),
        ({"data": (np.zeros((4, 12, 12, 1)), np.zeros((4, 2)))}, "loss must be given"),
        ({"optimizer": tf_keras.optimizers.SGD()}, "optimizer|identifier"),
        ({"schedule": PolynomialDecay(end_step=3)}, "needs a model with masked layers"),
        ({"teacher": "itself"}, "teacher must be another model"),
        ({"teacher": "other"}, "shape for shape"),
    ],
)
def test_arguments_that_make_no_sense(options, words):
    model = network(keras)
    options = {"data": task(8), "verbose": 0, **options}
    if options.get("teacher"):
        options["teacher"] = model if options["teacher"] == "itself" else network(keras, outputs=2)
    with pytest.raises(ValueError, match=words):
        fine_tune(model, options.pop("data"), **options)


def test_a_model_with_nothing_to_train():
    model = network(keras)
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights"):
        fine_tune(model, task(8), verbose=0)
