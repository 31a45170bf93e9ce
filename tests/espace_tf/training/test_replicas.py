"""fine_tune on several replicas, in processes of their own, is fine_tune on one device."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import replica_runs
import tensorflow as tf
import tf_keras
from finetuning_networks import LIBRARIES

from espace_tf.analysis.analyze import analyze
from espace_tf.training.fine_tune import fine_tune

SCRIPT = Path(replica_runs.__file__)


@functools.cache
def on_one_device(library=keras):
    """The history and the weights of a run in this process."""
    model = replica_runs.compiled(library)
    return replica_runs.tuned(library, model), model.get_weights()


def start(kind, library, file, **variables):
    root = SCRIPT.parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "2", **variables}
    command = [sys.executable, str(SCRIPT), kind, library, str(file)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes):
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), outputs


def free_ports(count):
    held = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def assert_as_on_one_device(file, library=keras):
    history, weights = on_one_device(library)
    with np.load(file) as stored:
        for name, values in history.items():
            np.testing.assert_allclose(stored[f"history/{name}"], values, atol=1e-5, err_msg=name)
        for index, weight in enumerate(weights):
            np.testing.assert_allclose(stored[f"weight/{index}"], weight, rtol=0, atol=1e-5)


@pytest.mark.slow
@LIBRARIES
def test_a_model_made_in_the_scope_trains_on_two_devices_as_on_one(library, tmp_path):
    finish(start("mirrored", library.__name__, tmp_path / "two.npz"))
    assert_as_on_one_device(tmp_path / "two.npz", library)


@pytest.mark.slow
@LIBRARIES
def test_two_devices_gather_the_statistics_of_one(library, tmp_path):
    finish(start("statistics", library.__name__, tmp_path / "two.npz"))
    expected = replica_runs.statistics(library)
    with np.load(tmp_path / "two.npz") as found:
        assert set(found) == set(expected) and len(expected) == 10
        for name, value in expected.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(found[name], value, atol=1e-5 * scale, err_msg=name)


def test_analyze_refuses_what_shares_no_work():
    with pytest.raises(TypeError, match="strategy must be a tf.distribute.Strategy"):
        analyze(replica_runs.network(keras), strategy="mirrored", verbose=0)


class Stop(keras.callbacks.Callback):
    """Ends a run in the middle, after the checkpoint of batch 6."""

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 7:
            raise InterruptedError


@pytest.mark.slow
def test_two_processes_go_on_from_the_chiefs_checkpoint_to_the_weights_of_one_device(tmp_path):
    options = {"checkpoint_dir": tmp_path / "0" / "checkpoint", "checkpoint_every": 2}
    with pytest.raises(InterruptedError):
        replica_runs.tuned(keras, replica_runs.compiled(keras), callbacks=[Stop()], **options)
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    workers, files = [], [tmp_path / name / "run.npz" for name in ("0", "1")]
    for index, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        workers.append(start("worker", "keras", file, TF_CONFIG=config))
    finish(*workers)
    assert not (tmp_path / "1" / "checkpoint").exists()  # only the chief writes
    with np.load(files[0]) as one, np.load(files[1]) as other:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert_as_on_one_device(files[0])


@LIBRARIES
def test_a_strategy_of_one_device_changes_nothing(library):
    results = []
    for strategy in (None, tf.distribute.OneDeviceStrategy("CPU:0")):
        model = replica_runs.compiled(library)
        history = replica_runs.tuned(library, model, strategy=strategy, teacher=None, epochs=1)
        results.append((history, model.get_weights()))
    (expected, weights), (history, found) = results
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, atol=1e-6, err_msg=name)
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_what_is_no_strategy_for_the_model_is_refused():
    model, data = replica_runs.network(keras), replica_runs.batches()
    with pytest.raises(TypeError, match="strategy must be a tf.distribute.Strategy.*'mirrored'"):
        fine_tune(model, data, strategy="mirrored")
    default = tf.distribute.get_strategy()
    with pytest.raises(ValueError, match="strategy must be one of MirroredStrategy"):
        fine_tune(model, data, strategy=default)
    one, other = (tf.distribute.OneDeviceStrategy("CPU:0") for _ in range(2))
    with one.scope(), pytest.raises(ValueError, match="whose scope is open"):
        fine_tune(model, data, strategy=other)

    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf_keras.layers.Dense(3)

        def call(self, x):
            return self.dense(tf.reshape(x, [-1, 128]))

    own = Own()
    own(np.zeros((1, 8, 8, 2)))
    with pytest.raises(ValueError, match=r"made inside strategy.scope\(\)"):
        fine_tune(own, data, strategy=other)
