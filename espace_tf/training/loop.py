"""The loop of fine-tuning: epochs, batches, checkpoints, batch norms, and when to stop."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from espace_tf.data.feed import Feed
from espace_tf.network import graph
from espace_tf.schedules import checked_fade
from espace_tf.training.batch_norms import reestimate_from
from espace_tf.training.checkpoints import Checkpoint
from espace_tf.training.fade import Fade
from espace_tf.training.step import Trainer


class Session:
    """The loop over epochs and batches around a trainer.

    Args:
        trainer: what does a step.
        feed: the training data.
        validation: the data judged after every epoch; None: none.
        epochs: passes over the data.
        batch_norm_batches: of the re-estimation of batch-norm statistics; 0: never.
        schedule: the fade of the masks at each step; None: masked at once.
        checkpoint: where the state is kept; None: nowhere.
        checkpoint_every: batches between two checkpoints.

    Raises:
        ValueError: a schedule for a model without masks.
    """

    def __init__(
        self,
        trainer: Trainer,
        feed: Feed,
        validation: Feed | None,
        *,
        epochs: int,
        batch_norm_batches: int,
        schedule: Callable[[Any], float] | None,
        checkpoint: Checkpoint | None,
        checkpoint_every: int,
    ):
        self.trainer, self.feed, self.validation = trainer, feed, validation
        self.model = trainer.model
        self.epochs, self.batch_norm_batches = epochs, batch_norm_batches
        self.schedule = schedule
        self.fade = None if schedule is None else Fade(self.model)
        self.checkpoint, self.every = checkpoint, checkpoint_every
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
            if self.feed.labels is None:  # not all of them were checked before
                self._check_labels(epoch, index, batch[1])
            loss = float(self._step(batch))
            if not np.isfinite(loss):
                self._stop(epoch, index, f"the loss is {loss}")
            callbacks.on_train_batch_end(index, {"loss": loss})
            if (index + 1) % self.every == 0 and index + 1 < self.feed.steps:
                self._keep(epoch, index)
                self._save(epoch, index + 1, self.model.history)
            if self.model.stop_training:
                break

    def _step(self, batch: tuple[Any, Any, Any]) -> Any:
        """One step of training, with the masks as far in as the schedule says."""
        fade = 1.0
        if self.fade is not None:
            fade = checked_fade(self.schedule(self.trainer.optimizer.iterations))
            self.fade.assign(fade)
        if fade == 1.0:  # as at inference: nothing dense is computed
            return self.trainer.step(*batch)
        with self.fade:
            return self.trainer.faded_step(*batch)

    def _check_labels(self, epoch: int, index: int, y: Any) -> None:
        """Raises for labels that are no classes; the model gets its last good weights."""
        try:
            self.trainer.task.check_labels(y)
        except ValueError as error:
            self.trainer.restore(self.good)
            raise ValueError(f"epoch {epoch + 1}, batch {index + 1}: {error}") from error

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


def _floating(model) -> list[Any]:
    return [weight for weight in model.weights if "float" in np.dtype(weight.numpy().dtype).name]
