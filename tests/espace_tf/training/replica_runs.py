"""Runs of fine_tune with a strategy, in a process of their own: prints nothing, writes arrays.

    python replica_runs.py mirrored LIBRARY FILE      on two logical CPUs
    python replica_runs.py worker LIBRARY FILE        one process of several; TF_CONFIG tells which
    python replica_runs.py statistics LIBRARY FILE    those of analyze, on two logical CPUs

With a second argument after FILE the process kills itself in the second epoch, unless that file
exists already.
"""

import importlib
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

from espace_tf import keras_layers
from espace_tf.analysis import statistics as moments
from espace_tf.distribution.replicas import Replicas
from espace_tf.network.sites import read_sites
from espace_tf.objectives import targets
from espace_tf.training.fine_tune import fine_tune

SEED = 11


def samples(count=16):
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(count, 8, 8, 2)).astype("float32")
    return x, rng.integers(0, 3, count), rng.uniform(0.5, 2.0, count).astype("float32")


def batches():
    """Of 5 samples, of which two replicas get unequal parts, and a last one of 1."""
    return tf.data.Dataset.from_tensor_slices(samples()).batch(5)


def validation():
    """The second batch has one sample, fewer than replicas."""
    return tf.data.Dataset.from_tensor_slices(samples(5)).batch(4)


def network(library, compressed=True):
    library.utils.set_random_seed(SEED)
    layers, ours = library.layers, keras_layers.for_library(library)
    inputs = library.Input((8, 8, 2), name="image")
    x = layers.RandomFlip("horizontal", name="flip")(inputs)
    x = layers.Conv2D(4, 3, strides=2, name="first", kernel_regularizer="l2")(x)
    x = layers.Rescaling(1.0, offset=20.0, name="far")(x)  # a mean of squares is of few digits
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    if compressed:
        options = {"rank": 4, "positions": [0, 2, 6, 8], "activation": "relu"}
        x = ours.DecomposedConv2D(6, 3, padding="same", name="second", **options)(x)
    else:
        x = layers.Conv2D(6, 3, padding="same", activation="relu", name="second")(x)
    x = layers.SpatialDropout2D(0.2, name="drop_maps")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(layers.GaussianNoise(0.1, name="noise")(x))
    x = layers.Dropout(0.3, name="drop")(x)
    return library.Model(inputs, layers.Dense(3, name="class")(x))


def tuned(library, model, **options):
    """The history of a run in which everything counts: clipping, weights, masks, the teacher."""
    options = {
        "optimizer": library.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=1.0),
        "teacher": network(library, compressed=False),
        "validation_data": validation(),
        "epochs": 2,
        "verbose": 0,
        **options,
    }
    return fine_tune(model, batches(), **options).history


def compiled(library):
    """A network with what `compile` may be told, of the scope that is open."""
    model = network(library)
    model.compile(
        loss=library.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=[library.metrics.SparseCategoricalCrossentropy(from_logits=True)],
    )
    return model


def mirrored(library):
    """The history and the weights of a model made and tuned in a scope, on two devices."""
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = compiled(library)
        return tuned(library, model), model.get_weights()


class Kill(keras.callbacks.Callback):
    """Kills the process in the second epoch, once."""

    def __init__(self, file):
        super().__init__()
        self.file = pathlib.Path(file)

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 6 and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def worker(library, folder, kill):
    """The history and the weights of a process with a model made outside the scope."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before TensorFlow does anything else
    model = compiled(library)
    history = tuned(
        library,
        model,
        strategy=strategy,
        checkpoint_dir=folder,
        checkpoint_every=2,
        callbacks=[Kill(kill)] if kill else [],
    )
    return history, model.get_weights()


def statistics(library, strategy=None):
    """What analyze gathers of every layer, by "path|name"; the last batch has one image."""
    devices = Replicas(strategy)
    with devices.scope(), devices.losses_of_whole_batches(library):
        model = network(library, compressed=False)
        sites = read_sites(model)
        x, y, _ = samples()
        data = [(x[:5], y[:5]), (x[5:15], y[5:15]), (x[15:], y[15:])]
        target = targets.resolve(model, None, data[0], SEED).target
    with devices.losses_of_whole_batches(library):
        found = moments.input_moments(model, sites, data, 16, SEED, devices)
        outputs = moments.output_statistics(model, sites, data, target, lambda _: True, devices)
    return {
        f"{path}|{name}": value
        for path, own in found.items()
        for name, value in {**own, **outputs[path]}.items()
    }


def main(kind, name, file, kill=None):
    if kind in ("mirrored", "statistics"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    library = importlib.import_module(name)
    if kind == "statistics":
        np.savez(file, **statistics(library, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])))
        return
    folder = pathlib.Path(file).parent / "checkpoint"
    run = mirrored(library) if kind == "mirrored" else worker(library, folder, kill)
    arrays = {f"history/{key}": values for key, values in run[0].items()}
    arrays |= {f"weight/{index}": weight for index, weight in enumerate(run[1])}
    np.savez(file, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
