"""The loop of fine-tuning: epochs, batches, checkpoints, batch norms, the best weights."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from espace_tf.data.feed import Batch, Feed
from espace_tf.network import graph
from espace_tf.schedules import checked_fade
from espace_tf.training import learning_rate
from espace_tf.training.batch_norms import BatchNorms
from espace_tf.training.best import Best
from espace_tf.training.checkpoints import Checkpoint
from espace_tf.training.steps.fade import Fade
from espace_tf.training.steps.step import Trainer


@dataclass
class Progress:
    """How far a run is: what a checkpoint holds beside the arrays.

    Attributes:
        epoch, batch: where to go on.
        state: "training"; "stopped" by a callback after `epoch`; "finished".
        rate: the learning rate that was found; None: the optimizer's own.
        best: see `Best`.
        history: of the epochs done.
    """

    epoch: int = 0
    batch: int = 0
    state: str = "training"
    rate: float | None = None
    best: dict[str, Any] | None = None
    history: dict[str, list[Any]] = field(default_factory=dict)


class Loop:
    """The loop over epochs and batches around a trainer.

    After every epoch batch-norm statistics are estimated anew and the validation data is judged, so
    that callbacks see, and stop at, what would be handed back.

    Args:
        trainer: what does a step.
        feed: the training data.
        validation: the data judged before the first and after every epoch; None: none.
        epochs: passes over the data.
        batch_norm_batches: of the re-estimation of batch-norm statistics; 0: never.
        schedule: the fade of the masks at each step; None: masked at once.
        find_rate: whether a learning rate is found and annealed; else it is the optimizer's.
        keep_best: whether the weights that judged best are handed back.
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
        find_rate: bool,
        keep_best: bool,
        checkpoint: Checkpoint | None,
        checkpoint_every: int,
    ):
        self.trainer, self.feed, self.validation = trainer, feed, validation
        self.model = trainer.model
        self.epochs, self.batch_norm_batches = epochs, batch_norm_batches
        self.team = trainer.team
        self.batch_norms = BatchNorms(self.model, self.team)
        self.schedule = schedule
        self.fade = None if schedule is None else Fade(self.model)
        self.annealing = learning_rate.Annealing(trainer.optimizer) if find_rate else None
        self.best = Best(self.model.weights) if keep_best else None
        self.checkpoint, self.every = checkpoint, checkpoint_every
        self.progress = Progress()
        self.good = trainer.state()
        self.say: Callable[[str], None] = lambda text: None

    def run(self, callbacks: list[Any], verbose: int):
        """Trains to the end and returns the library's History."""
        model, library, logs = self.model, graph.library(self.model), None
        self.say = print if verbose else self.say
        callbacks = library.callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            model=model,
            verbose=verbose,
            epochs=self.epochs,
            steps=self.feed.steps,
        )
        model.stop_training = False
        callbacks.on_train_begin()
        self.trainer.begin()
        history = model.history
        if not self._resume(history):
            self._begin()
        progress = self.progress
        for epoch in range(progress.epoch, self.epochs if progress.state == "training" else 0):
            callbacks.on_epoch_begin(epoch)
            loss = self._train_epoch(epoch, progress.batch, callbacks)
            logs = self._end_epoch(epoch, loss, callbacks)
            callbacks.on_epoch_end(epoch, logs)
            progress.state = "stopped" if self._is_stopped() else "training"
            self._save(epoch + 1, 0)
            if progress.state == "stopped":
                break
        if progress.state != "finished":
            self._finish()
        callbacks.on_train_end(logs)
        history.best_epoch = history.best_loss = None
        if self.best is not None:  # the callbacks' choice, unless it is worse than at the start
            self._hand_back_best(self.best.first_loss)
            history.best_epoch, history.best_loss = self.best.epoch, self.best.loss
        progress.state, history.learning_rate = "finished", progress.rate
        self._save(progress.epoch, 0)
        return history

    def _resume(self, history) -> bool:
        """Puts the last checkpoint in place; False if there is none."""
        stored = None if self.checkpoint is None else self.checkpoint.load()
        if stored is None:
            return False
        arrays, progress = stored
        count = len(self.trainer.variables)
        self.good, self.progress = arrays[:count], Progress(**progress)
        self.trainer.restore(self.good)
        if self.best is not None:
            self.best.restore(arrays[count:], self.progress.best)
        if self.annealing is not None:
            self.annealing.settle()
        history.history.update(self.progress.history)
        history.epoch.extend(range(self.progress.epoch))
        return True

    def _begin(self) -> None:
        """Judges the model as it came, and finds a learning rate."""
        if self.best is not None:
            self.best.note(0, self._judged())
        if self.annealing is not None:
            self.progress.rate = learning_rate.find(self._loss_after)
            self._restart()
            self.say(f"Learning rate found: {self.progress.rate:g}")

    def _restart(self) -> None:
        self.trainer.restore(self.good)
        if self.annealing is not None:
            self.annealing.settle()

    def _loss_after(self, rate: float) -> float:
        """The loss on held-out images after a few steps from the start, at a learning rate."""
        self._restart()
        steps = learning_rate.trial_steps(self.epochs * self.feed.steps)
        passes = (self._checked(self.feed, epoch) for epoch in itertools.count())
        batches = list(itertools.islice(itertools.chain.from_iterable(passes), steps))
        for step, batch in enumerate(batches if rate else ()):
            self.annealing.assign(rate, step, steps)
            self.trainer.step(*batch)
        self.batch_norms.reestimate(x for x, *_ in batches[: self.batch_norm_batches])
        return self._judged()

    def _train_epoch(self, epoch: int, start: int, callbacks) -> float:
        """The steps of an epoch from batch `start` on; the loss of the last one."""
        trainer, loss = self.trainer, 0.0
        if start == 0:
            trainer.reset()
        for index, batch in enumerate(self._checked(self.feed, epoch, start), start):
            callbacks.on_train_batch_begin(index)
            loss = float(self._step(batch))
            if np.isfinite(loss):
                callbacks.on_train_batch_end(index, trainer.results())
            else:
                trainer.restore(self.good)
                callbacks.on_train_batch_end(index, {**trainer.results(), "loss": loss})
                if not self._is_stopped():  # no TerminateOnNaN
                    self._stop(epoch, index, f"the loss is {loss}")
            if self._is_stopped():
                break
            if (index + 1) % self.every == 0 and index + 1 < self.feed.steps:
                self._keep(epoch, index)
                self._save(epoch, index + 1)
        return loss

    def _is_stopped(self) -> bool:
        """Whether a callback ended the training, in any of the processes."""
        self.model.stop_training = self.team.any(self.model.stop_training)
        return self.model.stop_training

    def _checked(self, feed: Feed, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of a pass; labels that are no classes give the model its last good weights."""
        for index, batch in enumerate(feed.epoch(epoch, start), start):
            try:
                if feed.labels is None:  # not all of them were checked before
                    self.trainer.task.check_labels(batch[1], feed.name)
            except ValueError as error:
                self.trainer.restore(self.good)
                raise ValueError(f"epoch {epoch + 1}, batch {index + 1}: {error}") from error
            yield batch

    def _step(self, batch: Batch) -> Any:
        """One step of training, with the masks as far in as the schedule says."""
        step, fade = int(self.trainer.optimizer.iterations.numpy()), 1.0
        if self.annealing is not None:
            self.annealing.assign(self.progress.rate, step, self.epochs * self.feed.steps)
        if self.fade is not None:
            fade = checked_fade(self.schedule(step))
            self.fade.assign(fade)
        if fade == 1.0:  # as at inference: nothing dense is computed
            return self.trainer.step(*batch)
        with self.fade:
            return self.trainer.faded_step(*batch)

    def _end_epoch(self, epoch: int, loss: float, callbacks) -> dict[str, Any]:
        """Batch-norm statistics and validation after an epoch; its logs."""
        before, logs = self.good, self.trainer.results()
        self._keep(epoch, self.feed.steps - 1)
        if not np.isfinite(loss):
            logs["loss"] = loss
        if self.fade is not None:
            logs["fade"] = float(self.fade.variable.numpy())
        if self.validation is None:
            self._reestimate(epoch, before)
            return logs
        callbacks.on_test_begin()  # a callback may exchange weights here
        self._reestimate(epoch, before)
        judged = self._judge(callbacks)
        if self.best is not None:
            self.best.note(epoch + 1, self.trainer.without_features(judged))
        callbacks.on_test_end(judged)
        return {**logs, **{f"val_{name}": value for name, value in judged.items()}}

    def _reestimate(self, epoch: int, before: list[np.ndarray]) -> None:
        """Statistics of batch norms from an epoch's data; back to `before` if not finite."""
        batches = itertools.islice(self.feed.epoch(epoch), self.batch_norm_batches)
        self.batch_norms.reestimate(x for x, *_ in batches)
        if not self._is_finite():
            self.good = before
            self._stop(epoch, self.feed.steps - 1, "the batch-norm statistics are not finite")

    def _judge(self, callbacks=None) -> dict[str, Any]:
        """The means and metrics of the validation data."""
        self.trainer.reset()
        for index, batch in enumerate(self._checked(self.validation, 0)):
            if callbacks is not None:
                callbacks.on_test_batch_begin(index)
            self.trainer.evaluate(*batch)
            if callbacks is not None:
                callbacks.on_test_batch_end(index, self.trainer.results())
        return self.trainer.results()

    def _judged(self) -> float:
        """The loss on the validation data by which weights and rates are chosen."""
        return self.trainer.without_features(self._judge())

    def _finish(self) -> None:
        """What follows the last epoch, whoever ended it: averaged weights, and the best ones."""
        optimizer = self.trainer.optimizer
        if optimizer.use_ema and self.progress.epoch:
            optimizer.finalize_variable_values(self.trainer.trained)
            self._reestimate(self.progress.epoch - 1, self.good)
        if self.best is not None:
            self._hand_back_best(self.best.loss)

    def _hand_back_best(self, bound: float) -> None:
        """Puts the best weights back, unless those in the model reach `bound`."""
        if self.best.is_in_place():
            return
        loss = self._judged()
        if loss <= bound:
            self.best.note(self.progress.epoch, loss)
        else:
            self.best.put_back()
            self.say(f"{self.best}; the last ones have {loss:.4g}")

    def _keep(self, epoch: int, index: int) -> None:
        """Remembers the state, to fall back on; stops if it is not finite."""
        if not self._is_finite():
            self._stop(epoch, index, "a weight is not finite")
        self.good = self.trainer.state()

    def _is_finite(self) -> bool:
        arrays = (weight.numpy() for weight in self.model.weights)
        return all(np.isfinite(a).all() for a in arrays if "float" in a.dtype.name)

    def _stop(self, epoch: int, index: int, what: str) -> None:
        self.trainer.restore(self.good)
        raise FloatingPointError(
            f"Training stopped at epoch {epoch + 1}, batch {index + 1}: {what}. The model has the "
            f"last good weights, at most {self.every} batches old. Give a smaller learning rate "
            "(optimizer=keras.optimizers.Adam(1e-4)) or gradient clipping (clipnorm=1.0), and "
            "check that data and labels are finite"
        )

    def _save(self, epoch: int, batch: int) -> None:
        self.progress.epoch, self.progress.batch = epoch, batch
        if self.checkpoint is not None:
            self.progress.history = self.model.history.history
            best = [] if self.best is None else self.best.arrays
            self.progress.best = None if self.best is None else self.best.numbers
            self.checkpoint.save([*self.trainer.state(), *best], asdict(self.progress))
