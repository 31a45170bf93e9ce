"""Callbacks in fine_tune do as in fit, and the end of training is the same whoever decides it."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from finetuning_networks import LIBRARIES

from espace_tf.training.fine_tune import fine_tune

SEED = 5
EPOCHS = 4


def net(library):
    library.utils.set_random_seed(SEED)
    inputs = library.Input((4,))
    x = library.layers.Dense(3, name="first")(inputs)
    x = library.layers.BatchNormalization(momentum=0.5, name="norm")(x)
    return library.Model(inputs, library.layers.Dense(2, name="last")(x))


def samples(count, seed=SEED):
    rng = np.random.default_rng(seed)
    x = (2.0 * rng.normal(size=(count, 4)) + 3.0).astype("float32")
    return x, (np.tanh(x[:, :2]) + 0.1 * rng.normal(size=(count, 2))).astype("float32")


def batches(count, seed=SEED):
    return tf.data.Dataset.from_tensor_slices(samples(count, seed)).batch(8)


def both(library, make, tmp_path, *, epochs=EPOCHS, optimizer=None, data=None, validate=True):
    """What fit and fine_tune make of one callback: models, histories, callbacks, folders."""
    data = batches(32) if data is None else data
    runs = []
    for name in ("fit", "fine_tune"):
        (tmp_path / name).mkdir()
        model, callback = net(library), make(tmp_path / name)
        rate = library.optimizers.SGD(0.1) if optimizer is None else optimizer()
        options = {"validation_data": batches(16, 1) if validate else None, "epochs": epochs}
        options.update(callbacks=[callback], verbose=0)
        if name == "fit":
            model.compile(rate, "mse", metrics=["mae"])
            history = model.fit(data, shuffle=False, **options).history
        else:
            options.update(loss="mse", metrics=["mae"], batch_norm_batches=0, keep_best=False)
            history = fine_tune(model, data, optimizer=rate, **options).history
        runs.append((model, history, callback, tmp_path / name))
    return runs


def assert_alike(runs, names=()):
    (fitted, expected, *_), (tuned, got, *_) = runs
    assert {"loss", "mae", *names} <= set(expected) <= set(got)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-4, err_msg=name)
    for one, other in zip(tuned.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=f"seed {SEED}")


def stock(library):
    """Callbacks that are compared with fit, by name: makers, and what they add to the history."""
    made = library.callbacks
    never = {"min_delta": 10.0, "patience": 1}
    rate = {"learning_rate"} if library is keras else {"lr"}

    class Own(made.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.01 * (batch + 1)

        def on_epoch_end(self, epoch, logs=None):
            logs["steps"] = float(self.model.optimizer.iterations.numpy())

    class Freeze(made.Callback):
        def on_train_begin(self, logs=None):
            self.model.get_layer("first").trainable = False

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.get_layer("last").trainable = False

    return {
        "stop": (lambda folder: made.EarlyStopping("val_mae", **never), ()),
        "restore": (
            lambda folder: made.EarlyStopping("val_loss", restore_best_weights=True, **never),
            (),
        ),
        "plateau": (lambda folder: made.ReduceLROnPlateau("val_mae", **never), rate),
        "schedule": (lambda folder: made.LearningRateScheduler(lambda e, r: r / (e + 1)), rate),
        "own": (lambda folder: Own(), {"steps"}),
        "freeze": (lambda folder: Freeze(), ()),
    }


@LIBRARIES
@pytest.mark.parametrize("name", ["stop", "restore", "plateau", "schedule", "own", "freeze"])
def test_a_callback_that_steers_does_as_in_fit(library, name, tmp_path):
    make, names = stock(library)[name]
    runs = both(library, make, tmp_path)
    assert_alike(runs, names)
    if name in ("stop", "restore"):
        assert len(runs[1][1]["loss"]) == 2
    assert getattr(runs[1][0], "optimizer", None) is None
    assert getattr(runs[1][0], "loss", None) is None


@LIBRARIES
def test_callbacks_are_called_as_in_fit(library, tmp_path):
    hooks = [f"on_{what}_{when}" for what in ("train", "test") for when in ("begin", "end")]
    hooks += [f"on_{what}_batch_{when}" for what in ("train", "test") for when in ("begin", "end")]
    hooks += ["on_epoch_begin", "on_epoch_end"]

    class Listen(library.callbacks.Callback):
        pass

    def note(hook):
        def call(self, *arguments, **more):
            logs = [each for each in (*arguments, *more.values()) if isinstance(each, dict)]
            numbers = {name: float(value) for each in logs for name, value in each.items()}
            self.heard = [*getattr(self, "heard", []), (hook, arguments[:1], numbers)]

        return call

    for hook in hooks:
        setattr(Listen, hook, note(hook))
    (_, _, fitted, _), (_, _, tuned, _) = both(library, lambda folder: Listen(), tmp_path, epochs=2)
    assert [each[0] for each in tuned.heard] == [each[0] for each in fitted.heard]
    for (hook, _, expected), (_, _, got) in zip(fitted.heard, tuned.heard, strict=True):
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=1e-4), (hook, name)


@LIBRARIES
def test_files_are_written_as_in_fit(library, tmp_path):
    made = library.callbacks
    makers = [
        lambda folder: made.ModelCheckpoint(str(folder / "{epoch}.keras")),
        lambda folder: made.ModelCheckpoint(
            str(folder / "best.weights.h5"),
            monitor="val_mae",
            save_best_only=True,
            save_weights_only=True,
        ),
        lambda folder: made.CSVLogger(str(folder / "log.csv")),
    ]

    class Several(made.Callback):
        """Hands what happens on to several callbacks."""

        def __init__(self, folder):
            super().__init__()
            self.inner = [make(folder) for make in makers]

        def set_model(self, model):
            super().set_model(model)
            for each in self.inner:
                each.set_model(model)

        def set_params(self, params):
            for each in self.inner:
                each.set_params(params)

        def on_train_begin(self, logs=None):
            for each in self.inner:
                each.on_train_begin(logs)

        def on_epoch_begin(self, epoch, logs=None):
            for each in self.inner:
                each.on_epoch_begin(epoch, logs)

        def on_epoch_end(self, epoch, logs=None):
            for each in self.inner:
                each.on_epoch_end(epoch, logs)

        def on_train_end(self, logs=None):
            for each in self.inner:
                each.on_train_end(logs)

    runs = both(library, Several, tmp_path, epochs=2)
    assert_alike(runs)
    read = []
    for _, _, _, folder in runs:
        whole = library.models.load_model(folder / "2.keras")
        assert type(whole.optimizer).__name__ == "SGD" and whole.loss is not None
        best = net(library)
        best.load_weights(str(folder / "best.weights.h5"))
        with open(folder / "log.csv") as file:
            table = list(csv.DictReader(file))
        columns = {name: [float(row[name]) for row in table] for name in ("epoch", "val_loss")}
        read.append([*whole.get_weights(), *best.get_weights(), *columns.values()])
    for one, other in zip(*read, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_averaged_weights_are_swapped_as_in_fit(swap_on_epoch, tmp_path):
    def adam():
        return keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.8)

    def make(folder):
        return keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)

    assert_alike(both(keras, make, tmp_path, optimizer=adam))


@LIBRARIES
def test_terminate_on_nan_ends_without_an_error(library, tmp_path):
    x, y = samples(64)
    x[60] = np.nan
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)

    def make(folder):
        return library.callbacks.TerminateOnNaN()

    (_, expected, *_), (tuned, got, *_) = both(
        library, make, tmp_path, data=data, validate=False, epochs=3
    )
    assert len(got["loss"]) == len(expected["loss"]) == 1 and np.isnan(got["loss"][0])
    assert all(np.isfinite(weight).all() for weight in tuned.get_weights())


@LIBRARIES
def test_tensorboard_writes(library, tmp_path):
    pytest.importorskip("tensorboard")
    runs = both(library, lambda folder: library.callbacks.TensorBoard(folder), tmp_path, epochs=2)
    assert_alike(runs)
    assert list((tmp_path / "fine_tune").rglob("events*"))


def run(library, callbacks=(), *, epochs=2, optimizer="sgd", **options):
    model = net(library)
    options = {"loss": "mse", "verbose": 0, "keep_best": False, "seed": SEED, **options}
    made = library.optimizers.Adam(1e-2, use_ema=optimizer == "ema", ema_momentum=0.8)
    history = fine_tune(
        model,
        samples(32),
        batch_size=8,
        epochs=epochs,
        optimizer=made,
        callbacks=callbacks,
        **options,
    )
    return model.get_weights(), history


@LIBRARIES
@pytest.mark.parametrize("optimizer", ["plain", "ema"])
@pytest.mark.parametrize("validate", [False, True])
def test_training_that_a_callback_ends_is_as_training_of_so_many_epochs(
    library, optimizer, validate
):
    class Stop(library.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    options = {"optimizer": optimizer, "validation_data": samples(16, 1) if validate else None}
    stopped, history = run(library, [Stop()], epochs=20, **options)
    whole, _ = run(library, epochs=2, **options)
    assert len(history.history["loss"]) == 2
    for one, other in zip(stopped, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@LIBRARIES
def test_a_learning_rate_that_is_found_is_nobody_elses(library):
    for callback in (
        library.callbacks.LearningRateScheduler(lambda epoch: 0.5),
        library.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=1e9),
    ):
        with pytest.raises(ValueError, match="default optimizer.* give optimizer=, such as Adam"):
            fine_tune(
                net(library), samples(32), loss="mse", epochs=4, callbacks=[callback], verbose=0
            )


@LIBRARIES
def test_a_metric_with_several_results(library, tmp_path):
    class Two(library.metrics.Mean):
        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(y_pred)

        def result(self):
            value = super().result()
            return {"once": value, "twice": 2.0 * value}

    x, y = samples(32)
    labels = np.eye(2, dtype="float32")[(y[:, 0] > y[:, 1]).astype(int)]
    model, options = net(library), {"verbose": 0, "optimizer": "sgd", "checkpoint_dir": tmp_path}
    metrics = [library.metrics.F1Score(average=None), Two()]
    loss = library.losses.CategoricalCrossentropy(from_logits=True)
    data = (x, labels)
    found = fine_tune(model, data, loss=loss, metrics=metrics, validation_data=data, **options)
    again = net(library)
    metrics = [library.metrics.F1Score(average=None), Two()]
    kept = fine_tune(again, data, loss=loss, metrics=metrics, validation_data=data, **options)
    assert np.shape(found.history["val_f1_score"]) == (1, 2)
    np.testing.assert_allclose(kept.history["val_f1_score"], found.history["val_f1_score"])
    assert found.history["val_twice"][0] == pytest.approx(2 * found.history["val_once"][0])


@LIBRARIES
def test_training_never_hands_back_a_worse_network(library, capsys):
    x, y = samples(128)
    model = net(library)
    fine_tune(model, (x, y), loss="mse", epochs=6, verbose=0, optimizer="adam")
    before, worse = model.get_weights(), library.optimizers.Adam(30.0)
    history = fine_tune(model, (x, y), loss="mse", epochs=2, optimizer=worse, batch_size=8)
    assert history.best_epoch == 0 and history.best_loss < min(history.history["val_loss"])
    assert "The weights from before training are kept" in capsys.readouterr().out
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    fine_tune(model, (x, y), loss="mse", optimizer=worse, keep_best=False, verbose=0)
    assert np.abs(before[0] - model.get_weights()[0]).max() > 0.1


@LIBRARIES
def test_early_stopping_has_the_last_word_unless_it_is_worse_than_the_start(library):
    x, y = samples(128)
    options = {"loss": "mse", "epochs": 3, "verbose": 0, "batch_size": 8}
    stop = library.callbacks.EarlyStopping(
        "val_loss",
        mode="max",
        patience=5,
        restore_best_weights=True,  # the worst, that is
    )
    model = net(library)
    history = fine_tune(model, (x, y), optimizer="adam", callbacks=[stop], **options)
    assert stop.best == max(history.history["val_loss"])
    for one, other in zip(stop.best_weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    before = model.get_weights()
    fine_tune(model, (x, y), optimizer=library.optimizers.Adam(30.0), callbacks=[stop], **options)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
