"""Keras callbacks for plain `fit`: masks that fade in, batch-norm statistics, a TensorBoard page.

They are Keras 3 callbacks that tf_keras's `fit` takes as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.checks import check_count
from espace_tf.files import checked_path
from espace_tf.network import graph
from espace_tf.schedules import checked_fade
from espace_tf.training.batch_norms import reestimate_batch_norm
from espace_tf.training.events import write
from espace_tf.training.steps.fade import Fade


class _Callback(keras.callbacks.Callback):
    """A Keras 3 callback with the questions that tf_keras's callback list asks."""

    _supports_tf_logs = True

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False


class GradualMasks(_Callback):
    """Fades the masked layers of a model from dense to masked while `fit` trains.

    In every step the fade of all masked layers is `schedule(optimizer.iterations)`; nothing is
    traced again. Inference (evaluate, predict, validation) always uses the masks. The
    layers are themselves again as soon as a training step ends, also when `fit` breaks off.

    Args:
        schedule: a function of the step that gives a fade in [0, 1], see `espace_tf.schedules`.

    Raises:
        TypeError: the schedule cannot be called.
        ValueError: when training begins with a model without masked layers.

    Example:
        >>> schedule = espace_tf.schedules.PolynomialDecay(end_step=1000)
        >>> small.fit(x, y, callbacks=[espace_tf.callbacks.GradualMasks(schedule)])
    """

    def __init__(self, schedule: Callable[[Any], float]):
        super().__init__()
        if not callable(schedule):
            raise TypeError(
                f"schedule must be a function of the step, such as PolynomialDecay(end_step=1000). "
                f"Received: {schedule!r}"
            )
        self.schedule = schedule
        self._fade = None
        self._due = False

    def on_train_begin(self, logs=None):
        """Puts a train function in place that opens the fade around every step."""
        self._steps = _steps_per_execution(self.model)
        self._fade = Fade(self.model, self._steps, self.model.optimizer.iterations)
        self.model.make_train_function(force=True)
        self.model.train_function = self._opened(self.model.train_function)

    def on_train_batch_begin(self, batch, logs=None):
        """Assigns the fade of this step, and of those that are run together with it."""
        first = int(self.model.optimizer.iterations.numpy())
        steps = range(first, first + self._steps)
        self._fade.assign(*(checked_fade(self.schedule(step)) for step in steps), first=first)
        self._due = True

    def on_epoch_end(self, epoch, logs=None):
        """Adds the fade to the epoch's logs, for History and TensorBoard."""
        if logs is not None:
            logs["fade"] = float(self._fade.variable.numpy())

    def on_train_end(self, logs=None):
        """Drops the train function: the next `fit` makes its own."""
        self.model.train_function = None

    def _opened(self, train_function: Callable) -> Callable:
        def step(iterator):
            if not self._due:  # a later fit, without this callback: an earlier one broke off
                self.model.make_train_function(force=True)
                return self.model.train_function(iterator)
            self._due = False
            try:
                with self._fade:
                    return train_function(iterator)
            except BaseException:
                self.model.train_function = None
                raise

        return step


def _steps_per_execution(model) -> int:
    """How many steps `fit` runs in one call, which no callback interrupts."""
    own = getattr(model, "_steps_per_execution", None)  # a variable in tf_keras
    return int(getattr(model, "steps_per_execution", 1) if own is None else own.numpy())


class ReestimateBatchNorm(_Callback):
    """Re-estimates batch-norm statistics before every evaluation and at the end of training.

    Args:
        data: tf.data.Dataset of batches, or arrays: usually the training data.
        batches: how many batches to use at most, >= 1.
        batch_size: for arrays, >= 1.

    Raises:
        TypeError, ValueError: batches or batch_size is no such number.

    Example:
        >>> model.fit(x, y, callbacks=[espace_tf.callbacks.ReestimateBatchNorm(x)])
    """

    def __init__(self, data: Any, batches: int = 200, *, batch_size: int = 32):
        super().__init__()
        check_count(batches, "batches")
        check_count(batch_size, "batch_size")
        self.data, self.batches, self.batch_size = data, batches, batch_size

    def on_test_begin(self, logs=None):
        """Before an evaluation, also the validation inside `fit`."""
        self._reestimate()

    def on_train_end(self, logs=None):
        """At the end of `fit`."""
        self._reestimate()

    def _reestimate(self) -> None:
        reestimate_batch_norm(self.model, self.data, self.batches, batch_size=self.batch_size)


class CompressionSummary(_Callback):
    """Writes what is compressed, and the fade, for TensorBoard, under `log_dir`/espace.

    At the beginning of training: scalars espace/<layer path>/rank and /keep_fraction, one image
    espace/<layer path>/mask for every mask (white is computed), a table of all compressed layers
    as text, and espace/total/parameters. After every epoch: espace/fade, where `GradualMasks`
    stands before it in the list of callbacks. The step is the optimizer's.

    Args:
        log_dir: the folder that TensorBoard reads, which the TensorBoard callback may share.

    Raises:
        TypeError, ValueError: log_dir is no path, or empty.

    Example:
        >>> model.fit(x, y, callbacks=[espace_tf.callbacks.CompressionSummary("logs")])
    """

    def __init__(self, log_dir: str | Path):
        super().__init__()
        self.log_dir = checked_path(log_dir, "log_dir") / "espace"
        self._writer = None

    def on_train_begin(self, logs=None):
        """Writes the ranks, masks and table."""
        self._writer = tf.summary.create_file_writer(str(self.log_dir))
        step = self._step()
        rows = ["| layer | rank | order | kept |", "|---|---|---|---|"]
        with self._writer.as_default():
            for path, layer in graph.layers(self.model).items():
                rank, mask = getattr(layer, "rank", None), _mask(layer)
                if not hasattr(layer, "fade"):
                    continue
                keep = 1.0 if mask is None else float(mask.mean())
                write(f"espace/{path}/keep_fraction", "scalars", np.float32(keep), step)
                if rank is not None:
                    write(f"espace/{path}/rank", "scalars", np.float32(rank), step)
                if mask is not None:
                    write(f"espace/{path}/mask", "images", _image(mask), step)
                order = getattr(layer, "order", "")
                rows.append(f"| {path} | {rank or ''} | {order} | {keep:.0%} |")
            write("espace/layers", "text", "\n".join(rows), step)
            parameters = np.float32(self.model.count_params())
            write("espace/total/parameters", "scalars", parameters, step)
        self._writer.flush()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the fade."""
        if logs and "fade" in logs:
            with self._writer.as_default():
                write("espace/fade", "scalars", np.float32(logs["fade"]), self._step())

    def on_train_end(self, logs=None):
        """Closes the file."""
        self._writer.close()

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())


def _mask(layer) -> np.ndarray | None:
    """The kept positions as a float32 map [OH, OW] of zeros and ones; None without a mask."""
    if getattr(layer, "positions", None) is None:
        return None
    mask = np.zeros(layer.map_size, np.float32)
    mask.flat[layer.positions] = 1.0
    return mask


def _image(mask: np.ndarray) -> list[Any]:
    """What TensorBoard's image plugin reads: width, height and a PNG."""
    height, width = mask.shape
    png = tf.io.encode_png((255 * mask[:, :, None]).astype(np.uint8)).numpy()
    return [str(width), str(height), png]
