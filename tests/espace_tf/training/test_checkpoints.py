"""Training that is killed goes on where it was; another run may not take its place."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from finetuning_networks import SLOW_TF_KERAS, copy_weights, network, student_of, task, trained

from espace_tf.schedules import PolynomialDecay
from espace_tf.training.checkpoints import Checkpoint
from espace_tf.training.fine_tune import fine_tune
from espace_tf.training.run_identity import described

ROOT = Path(__file__).parents[3]


CHILD = """
import os, signal, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
folder, name, at = sys.argv[2], sys.argv[3], int(sys.argv[4])
library = __import__(name)
sys.path.insert(0, sys.argv[1] + "/tests/espace_tf/training")
import test_checkpoints as tests

class Kill(library.callbacks.Callback):
    seen = 0
    def on_train_batch_end(self, batch, logs=None):
        Kill.seen += 1
        if Kill.seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

tests.long_run(library, folder, callbacks=[Kill()])
"""


def long_run(library, folder, checkpoint="run", **options):
    models = [network(library, False), network(library, True, dropout=0.3)]
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
def test_a_killed_run_ends_as_an_uninterrupted_one(library, tmp_path):
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


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    teacher, data = trained(keras), task(64)
    run = {"teacher": teacher, "checkpoint_dir": tmp_path, "verbose": 0, "keep_best": False}
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
    with pytest.raises(ValueError, match="optimizer was .found., now is .*Adam"):
        fine_tune(student, data, optimizer="adam", **run)
    with open(tmp_path / "fine_tune.npz", "wb") as file:
        np.save(file, np.zeros(3))  # an array, no archive of them
    with pytest.raises(ValueError, match="is damaged .*delete it"):
        fine_tune(student, data, **run)
    (tmp_path / "fine_tune.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is damaged .*delete it"):
        fine_tune(student, data, **run)
    for one, other in zip(start, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class Halve(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return 0.5 * keras.losses.mean_squared_error(y_true, y_pred)


def test_a_checkpoint_knows_the_settings_of_losses_and_metrics(tmp_path):
    """Judged alike by name only, another run would go on with another loss."""
    losses, metrics = keras.losses, keras.metrics
    kinds = [
        ({"loss": losses.MeanSquaredError()}, None),
        ({"loss": losses.MeanSquaredError("sum")}, "loss was .*now is .*"),
        ({"loss": Halve()}, "loss was"),
        ({"loss": losses.Huber(2.0)}, "loss was"),
        ({"loss": losses.MeanSquaredError(), "loss_weights": [2.0]}, "loss_weights was null, now"),
        ({"loss": losses.MeanSquaredError(), "metrics": ["mae"]}, "metrics was null, now is"),
    ]
    x, y = np.ones((8, 3), "float32"), np.zeros((8, 2), "float32")
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    start = dense.get_weights()
    run = {"checkpoint_dir": tmp_path, "optimizer": "sgd", "verbose": 0}
    for told, words in kinds:
        dense.set_weights(start)
        dense.compile("adam", **told)
        if words is None:
            fine_tune(dense, (x, y), **run)
            continue
        with pytest.raises(ValueError, match=f"another training: {words}"):
            fine_tune(dense, (x, y), **run)
    same = metrics.MeanSquaredError(), metrics.MeanSquaredError(name="other")
    assert described(same[0]) == described(same[1]) != described(metrics.AUC())


def test_a_run_that_a_callback_ended_is_not_taken_up_again(tmp_path):
    x, y = np.ones((32, 3), "float32"), np.zeros((32, 2), "float32")

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    found, start = [], None
    for callbacks in ([Stop()], []):
        dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
        start = dense.get_weights() if start is None else start
        dense.set_weights(start)
        options = {"epochs": 5, "loss": "mse", "checkpoint_dir": tmp_path, "verbose": 0}
        history = fine_tune(dense, (x, y), callbacks=callbacks, **options)
        found.append([*dense.get_weights(), history.history["loss"]])
        found[-1] += [history.best_epoch, history.best_loss, history.learning_rate]
    assert len(found[0][2]) == 2
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_keeps_every_kind_of_number(tmp_path):
    numbers = tf.cast([1.5, -2.0], tf.bfloat16).numpy()
    checkpoint = Checkpoint(tmp_path / "new" / "folder", {"epochs": 1})
    assert checkpoint.load() is None
    checkpoint.save([numbers, np.int64(3)], {"history": {"loss": [np.float32(0.5)]}})
    arrays, progress = checkpoint.load()
    assert arrays[0].view(numbers.dtype).tolist() == [1.5, -2.0] and arrays[1] == 3
    assert progress == {"history": {"loss": [0.5]}}
