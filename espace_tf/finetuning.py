"""Training that brings a compressed model's accuracy back, with the uncompressed one as teacher."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf import data as user_data
from espace_tf import graph
from espace_tf.callbacks import Fade, reestimate_batch_norm, reestimate_from
from espace_tf.checkpoints import Checkpoint
from espace_tf.distillation import Teacher
from espace_tf.feed import Feed
from espace_tf.trainer import Task, Trainer

__all__ = ["fine_tune", "reestimate_batch_norm"]
LEARNING_RATE = 1e-3


def fine_tune(
    model,
    data: Any,
    *,
    teacher=None,
    epochs: int = 1,
    validation_data: Any = None,
    batch_size: int = 32,
    optimizer: Any = None,
    loss: Any = None,
    metrics: Any = None,
    temperature: float = 4.0,
    distillation_weight: float = 0.5,
    feature_weight: float = 1.0,
    features: str | Sequence[str] | None = "auto",
    batch_norm_batches: int = 200,
    schedule: Callable[[Any], float] | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 100,
    callbacks: Sequence[Any] = (),
    seed: int = 0,
    verbose: int = 1,
):
    """Trains `model` in place to do the task and to imitate its teacher.

    The loss is

        task loss + distillation_weight * distillation_loss + feature_weight * feature_loss

    plus the model's regularisation. Classification outputs are distilled by T^2 KL(teacher ||
    student) at temperature T; any other output by its relative squared error. The feature loss is
    the relative squared error at the stage ends (the last output before each downsampling and
    before global pooling), averaged. Without labels the teacher's terms are all there is.

    Layers with trainable=False stay as they are, and the teacher is never changed. Batch-norm
    statistics are re-estimated before every validation and at the end. Models that compute in
    float16 train with a dynamically scaled loss.

    Args:
        model: a Keras 3 or tf_keras model. Its compile state is not changed.
        data: tf.data.Dataset of batches x, (x, y) or (x, y, sample_weight), or the same with arrays
            (shuffled by seed and epoch; the rest that fills no batch is left out).
        teacher: the uncompressed model; None trains on the labels alone.
        epochs: passes over the data, >= 1.
        validation_data: like data; adds val_... to the history.
        batch_size: for arrays.
        optimizer: optimizer of the model's library, or its name (a copy is used). Default: Adam,
            1e-3 with cosine decay to 0 over the whole run.
        loss: as in `compile`. Default: the compiled loss, else sparse categorical cross-entropy for
            integer labels and one output.
        metrics: as in `compile`, beside `loss`. Default: the compiled ones, else accuracy with an
            inferred loss.
        temperature: T, > 0.
        distillation_weight: weight of the teacher's outputs, >= 0.
        feature_weight: weight of the teacher's features, >= 0.
        features: "auto" for stage ends, None for none, or paths of layers that both models have.
        batch_norm_batches: batches to re-estimate batch-norm statistics with; 0 for never.
        schedule: fade of the masks at each step, see `espace_tf.schedules`; None: masked at once.
        checkpoint_dir: folder to resume from. A run that was killed continues when the same call is
            repeated with the model as it was, and ends with the weights of an uninterrupted run. A
            dataset must give the same batches in every pass for that. The states of callbacks and
            of tf_keras's Dropout are not kept.
        checkpoint_every: batches between two checkpoints, also between two looks at whether the
            weights are still finite; every epoch ends with one.
        callbacks: callbacks of the model's library.
        seed: of the order of arrays and of Keras 3's random layers (dropout).
        verbose: 0 silent, 1 progress bar, 2 one line an epoch.

    Returns:
        The library's History: loss, task_loss, distillation_loss, feature_loss, metrics, val_...

    Raises:
        ValueError: an argument outside its range, empty data, labels without a known loss, no
            labels and no teacher, a teacher with other outputs, a checkpoint of another run.
        FloatingPointError: the loss became NaN or infinite; the model has its last good weights.

    The published recipe of LRDKT (Lin et al., 2018), on which the profile "faithful" rests:

        fine_tune(model, data, teacher=teacher, temperature=5.0, distillation_weight=0.003,
                  feature_weight=0.0005, optimizer=keras.optimizers.SGD(1e-3, momentum=0.9,
                  weight_decay=5e-4))

    Example:
        >>> compressed = espace_tf.compress(model, (x, y), speedup=4)
        >>> history = fine_tune(compressed, (x, y), teacher=model, epochs=2)
    """
    _check_arguments(epochs, temperature, batch_norm_batches, checkpoint_every)
    library = graph.library(model)
    inputs = getattr(model, "inputs", None)
    feed = Feed(data, batch_size, seed=seed, inputs=inputs)
    validation = None
    if validation_data is not None:
        validation = Feed(validation_data, batch_size, inputs=inputs)
    batch = next(feed.epoch(0))
    if batch[1] is None and teacher is None:
        raise ValueError(
            "data must hold labels, (x, y), when there is no teacher. Received: inputs only; give "
            "teacher=, the uncompressed model"
        )
    weights = {"distillation_loss": distillation_weight, "feature_loss": feature_weight}
    task = Task(model, batch, loss=loss, metrics=metrics)
    if teacher is not None:
        teacher = _teacher(model, teacher, batch, task, temperature, features, weights)
    optimizer = _optimizer(library, optimizer, epochs * feed.steps)
    run = {
        "model": graph.fingerprint(model),
        "model weights": _weights_hash(model),
        "teacher weights": None if teacher is None else _weights_hash(teacher.model),
        "data": user_data.describe(data),
        "validation data": user_data.describe(validation_data),
        "optimizer": type(optimizer).__name__,
        **{
            f"optimizer's {name}": str(value)
            for name, value in optimizer.get_config().items()
            if name != "name"  # numbered anew in every process
        },
        "loss": [_name(each) for each in task.losses],
        "schedule": None if schedule is None else _name(schedule),
        "features": None if teacher is None else teacher.features,
        **weights,
        **{"epochs": epochs, "batch_size": batch_size, "temperature": temperature, "seed": seed},
        "batch_norm_batches": batch_norm_batches,
    }
    session = _Session(
        Trainer(model, task, teacher, optimizer, weights, seed=seed),
        feed,
        validation,
        epochs=epochs,
        batch_norm_batches=batch_norm_batches,
        fade=None if schedule is None else Fade(model),
        schedule=schedule,
        checkpoint=None if checkpoint_dir is None else Checkpoint(checkpoint_dir, run),
        checkpoint_every=checkpoint_every,
    )
    return session.run(list(callbacks), verbose)


class _Session:
    """The loop over epochs and batches around a trainer."""

    def __init__(self, trainer: Trainer, feed: Feed, validation: Feed | None, **options: Any):
        self.trainer, self.feed, self.validation = trainer, feed, validation
        self.model = trainer.model
        self.epochs = options["epochs"]
        self.batch_norm_batches = options["batch_norm_batches"]
        self.fade, self.schedule = options["fade"], options["schedule"]
        self.checkpoint, self.every = options["checkpoint"], options["checkpoint_every"]
        self.good = trainer.state()

    def run(self, callbacks: list[Any], verbose: int):
        """Trains to the end and returns the library's History."""
        library = graph.library(self.model)
        callbacks = library.callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            model=self.model,
            verbose=verbose,
            epochs=self.epochs,
            steps=self.feed.steps,
        )
        self.model.stop_training = False
        callbacks.on_train_begin()
        history, logs = self.model.history, None
        first, start = self._resume(history)
        for epoch in range(first, self.epochs):
            callbacks.on_epoch_begin(epoch)
            self._train_epoch(epoch, start, callbacks)
            start = 0
            logs = self._end_epoch(epoch)
            callbacks.on_epoch_end(epoch, logs)
            self._save(epoch + 1, 0, history)
            if self.model.stop_training:
                break
        callbacks.on_train_end(logs)
        return history

    def _resume(self, history) -> tuple[int, int]:
        """Puts the last checkpoint in place; the epoch and batch to go on with."""
        stored = None if self.checkpoint is None else self.checkpoint.load()
        if stored is None:
            return 0, 0
        arrays, progress = stored
        self.trainer.restore(arrays)
        self.good = arrays
        history.history.update(progress["history"])
        history.epoch.extend(range(progress["epoch"]))
        return progress["epoch"], progress["batch"]

    def _train_epoch(self, epoch: int, start: int, callbacks) -> None:
        trainer = self.trainer
        if start == 0:
            trainer.reset()
        for index, batch in enumerate(self.feed.epoch(epoch, start), start):
            callbacks.on_train_batch_begin(index)
            if self.fade is not None:
                self.fade.assign(self.schedule(trainer.optimizer.iterations))
            with self.fade or nullcontext():
                loss = float(trainer.step(*batch))
            if not np.isfinite(loss):
                self._stop(epoch, index, f"the loss is {loss}")
            callbacks.on_train_batch_end(index, {"loss": loss})
            if (index + 1) % self.every == 0 and index + 1 < self.feed.steps:
                self._keep(epoch, index)
                self._save(epoch, index + 1, self.model.history)
            if self.model.stop_training:
                break

    def _end_epoch(self, epoch: int) -> dict[str, float]:
        """Batch-norm statistics and validation after an epoch; its logs."""
        trainer, before = self.trainer, self.good
        self._keep(epoch, self.feed.steps - 1)
        logs = trainer.results()
        if self.fade is not None:
            logs["fade"] = float(self.fade.variable.numpy())
        last = epoch + 1 == self.epochs or self.model.stop_training
        if last:
            trainer.optimizer.finalize_variable_values(trainer.trained)
        if self.batch_norm_batches and (last or self.validation is not None):
            batches = itertools.islice(self.feed.epoch(epoch), self.batch_norm_batches)
            reestimate_from(self.model, (x for x, *_ in batches))
            if not self._is_finite():
                self.good = before
                self._stop(epoch, self.feed.steps - 1, "the batch-norm statistics are not finite")
        if self.validation is not None:
            trainer.reset()
            for batch in self.validation.epoch(0):
                trainer.evaluate(*batch)
            logs.update({f"val_{name}": value for name, value in trainer.results().items()})
        return logs

    def _keep(self, epoch: int, index: int) -> None:
        """Remembers the state, to fall back on; stops if it is not finite."""
        if not self._is_finite():
            self._stop(epoch, index, "a weight is not finite")
        self.good = self.trainer.state()

    def _is_finite(self) -> bool:
        return all(np.isfinite(weight.numpy()).all() for weight in _floating(self.model))

    def _stop(self, epoch: int, index: int, what: str) -> None:
        self.trainer.restore(self.good)
        raise FloatingPointError(
            f"Training stopped at epoch {epoch + 1}, batch {index + 1}: {what}. The model has the "
            f"last good weights, at most {self.every} batches old. Give a smaller learning rate "
            "(optimizer=keras.optimizers.Adam(1e-4)) or gradient clipping (clipnorm=1.0), and "
            "check that data and labels are finite"
        )

    def _save(self, epoch: int, batch: int, history) -> None:
        if self.checkpoint is not None:
            progress = {"epoch": epoch, "batch": batch, "history": history.history}
            self.checkpoint.save(self.trainer.state(), progress)


def _check_arguments(epochs, temperature, batch_norm_batches, checkpoint_every) -> None:
    counts = {"epochs": (epochs, 1), "checkpoint_every": (checkpoint_every, 1)}
    counts["batch_norm_batches"] = (batch_norm_batches, 0)
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or int(value) != value or value < least:
            raise ValueError(f"{name} must be an integer >= {least}. Received: {value!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be a number > 0. Received: {temperature!r}")


def _teacher(model, teacher, batch, task, temperature, features, weights) -> Teacher:
    graph.library(teacher)
    if teacher is model:
        raise ValueError("teacher must be another model than the one that is trained, not itself")
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            name = name.replace("loss", "weight")
            raise ValueError(f"{name} must be a finite number >= 0. Received: {weight!r}")
    if not weights["feature_loss"]:
        features = None
    return Teacher(
        teacher, model, batch[0], losses=task.losses, temperature=temperature, features=features
    )


def _optimizer(library, optimizer, steps: int):
    """A fresh optimizer like the given one, or the default for so many steps."""
    if optimizer is None:
        decay = library.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        return library.optimizers.Adam(decay)
    optimizer = library.optimizers.get(optimizer)
    if not isinstance(optimizer, library.optimizers.Optimizer):
        raise ValueError(
            f"optimizer must be one of {library.__name__}.optimizers, as the model is of "
            f"{library.__name__}. Received: {optimizer!r}"
        )
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # the trainer scales the loss
    return type(optimizer).from_config(optimizer.get_config())


def _floating(model) -> list[Any]:
    return [weight for weight in model.weights if "float" in np.dtype(weight.numpy().dtype).name]


def _weights_hash(model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()[:16]


def _name(thing: Any) -> str | None:
    """A text for a loss or schedule that is the same in every process."""
    if thing is None or isinstance(thing, str):
        return thing
    if hasattr(thing, "fade") and hasattr(thing, "get_config"):
        return f"{type(thing).__name__}({thing.get_config()})"
    return getattr(thing, "__name__", type(thing).__name__)
