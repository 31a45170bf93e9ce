"""One step of fine-tuning, and the state that lives between two steps."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.distribution import replicas, shares
from espace_tf.network import graph
from espace_tf.network.tracing import traced
from espace_tf.objectives.losses import TINY
from espace_tf.training.steps.distillation import Teacher
from espace_tf.training.steps.task import Task

GROWTH_STEPS = 2000


class LossScale:
    """Dynamic scaling of a float16 model's loss (Micikevicius et al., arXiv:1710.03740).

    The scale halves, and the step is left out, when a gradient overflows; it doubles after
    GROWTH_STEPS steps without.
    """

    def __init__(self):
        self.scale = tf.Variable(2.0**15, trainable=False)
        self.streak = tf.Variable(0, trainable=False)

    @property
    def variables(self) -> list[tf.Variable]:
        """The scale and the number of steps since it changed."""
        return [self.scale, self.streak]

    def unscaled(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """The gradients of the loss, of those of the scaled one, float32."""
        return [None if g is None else tf.cast(g, tf.float32) / self.scale for g in gradients]

    def apply(self, gradients: Sequence[tf.Tensor | None], apply) -> None:
        """Calls `apply` if all unscaled gradients are finite; adapts the scale."""
        finite = tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None]
        )

        def good():
            apply()
            grow = self.streak + 1 >= GROWTH_STEPS
            self.scale.assign(tf.where(grow, self.scale * 2.0, self.scale))
            self.streak.assign(tf.where(grow, 0, self.streak + 1))
            return tf.constant(True)

        def overflow():
            self.scale.assign(tf.maximum(self.scale / 2.0, 1.0))
            self.streak.assign(0)
            return tf.constant(False)

        tf.cond(finite, good, overflow)


class Trainer:
    """Steps of training and evaluation, traced once, and everything that they change.

    Args:
        model: the model to train.
        task: the loss and metrics of the labels.
        teacher: the terms of the teacher, or None.
        optimizer: an optimizer of the model's library, not used elsewhere.
        weights: the weights of "distillation_loss" and "feature_loss" in the loss.
        seeds: variables that the draws of random layers follow from.
        team: the replicas that the model is on.

    Raises:
        ValueError: the model has nothing to train.
    """

    def __init__(
        self,
        model,
        task: Task,
        teacher: Teacher | None,
        optimizer,
        weights,
        *,
        seeds: Sequence[Any] = (),
        team: replicas.Replicas | None = None,
    ):
        self.model, self.task, self.teacher, self.optimizer = model, task, teacher, optimizer
        self.team = team or replicas.Replicas()
        self.weights = weights
        self.trained = list(model.trainable_variables)
        if not self.trained:
            raise ValueError(
                f"model must have trainable weights. Received: {model.name}, with every layer's "
                "trainable False: set trainable=True on the layers to train, or give "
                "train_frozen=True"
            )
        optimizer.build(self.trained)
        self._moving = self.trained
        self.scale = LossScale() if graph.is_half(model) else None
        names = ["loss", *["task_loss"] * (task.judge is not None)]
        names += ["distillation_loss"] * (teacher is not None)
        names += ["feature_loss"] * (teacher is not None and bool(teacher.features))
        mean = graph.library(model).metrics.Mean
        self.means = {name: mean(name=name) for name in names}
        self._seeds = list(seeds)
        self.step = traced(self._step)
        self.faded_step = traced(self._step)  # with layers that read a fade
        self.evaluate = traced(self._evaluate)

    def _recording(self):
        """The context in which `_losses` may be called."""
        return self.teacher.record() if self.teacher else nullcontext()

    def _losses(self, calls, x, y, weight, training: bool) -> tuple[Any, dict[str, tf.Tensor]]:
        """The outputs and the losses of a batch; only the model's run is this replica's part."""
        rows = tf.shape(tf.nest.flatten(x)[0])[0]
        own = graph.taken(self.model, shares.part(x))
        with shares.batch_of(rows):
            outputs = shares.whole(self.model(own, training=training), rows)
        task = self.task.loss(x, y, outputs, weight, rows)
        terms = {} if self.teacher is None else self.teacher.terms(own, outputs, calls, rows)
        return outputs, {"loss": task + self._weighted(task, terms), "task_loss": task, **terms}

    def _weighted(self, task: tf.Tensor, terms: dict[str, tf.Tensor]) -> tf.Tensor | float:
        """The teacher's part of the loss; features count at most as much as what the outputs do."""
        parts = {name: self.weights[name] * term for name, term in terms.items()}
        if "feature_loss" in parts and self._judges_outputs:
            outputs = parts.get("distillation_loss", 0.0)
            outputs = tf.stop_gradient(outputs + (task if "task_loss" in self.means else 0.0))
            size = tf.maximum(tf.stop_gradient(parts["feature_loss"]), TINY)
            parts["feature_loss"] *= tf.minimum(1.0, outputs / size)
        return sum(parts.values())

    @property
    def _judges_outputs(self) -> bool:
        return "task_loss" in self.means or self.weights["distillation_loss"] > 0

    def without_features(self, results: dict[str, Any]) -> float:
        """The loss of the outputs alone, of `results`: what tells a better model from a worse one.

        With nothing but features to imitate it is their loss.
        """
        if not self._judges_outputs:
            return results["loss"]
        distillation = results.get("distillation_loss", 0.0)
        return results.get("task_loss", 0.0) + self.weights["distillation_loss"] * distillation

    def _step(self, x, y, weight) -> tf.Tensor:
        with self._recording() as calls:
            found = self.team.run(lambda *batch: self._gradients(calls, *batch), x, y, weight)
        gradients, outputs, losses = found

        def apply():
            self.team.run(self._apply, gradients)

        if self.scale is None:
            apply()
        else:
            self.scale.apply(self.team.first(gradients), apply)
        return self._note(x, y, weight, outputs, losses)

    def _gradients(self, calls, x, y, weight) -> tuple[Any, Any, dict[str, tf.Tensor]]:
        with tf.GradientTape() as tape:
            outputs, losses = self._losses(calls, x, y, weight, True)
            scaled = losses["loss"] * (1.0 if self.scale is None else self.scale.scale)
        watched = [v if isinstance(v, tf.Variable) else v.value for v in self._moving]
        gradients = shares.summed_gradients(tape.gradient(scaled, watched))
        if self.scale is not None:
            gradients = self.scale.unscaled(gradients)
        return gradients, outputs, shares.agreed(losses)

    def _apply(self, gradients: Sequence[tf.Tensor | None]) -> None:
        pairs = zip(gradients, self._moving, strict=True)
        shares.apply_gradients(self.optimizer, [pair for pair in pairs if pair[0] is not None])

    def _evaluate(self, x, y, weight) -> None:
        with self._recording() as calls:
            found = self.team.run(lambda *batch: self._judged(calls, *batch), x, y, weight)
        self._note(x, y, weight, *found)

    def _judged(self, calls, x, y, weight) -> tuple[Any, dict[str, tf.Tensor]]:
        outputs, losses = self._losses(calls, x, y, weight, False)
        return outputs, shares.agreed(losses)

    def _note(self, x, y, weight, outputs, losses) -> tf.Tensor:
        """Adds a batch to the means and metrics; its loss."""
        outputs, losses = self.team.first((outputs, losses))
        for name, value in losses.items():
            if name in self.means:
                self.means[name].update_state(value)
        self.task.update(x, y, outputs, weight)
        return losses["loss"]

    def begin(self) -> None:
        """Leaves out what callbacks have frozen when training begins; as in fit, no later."""
        left = {id(variable) for variable in self.model.trainable_variables}
        self._moving = [variable for variable in self.trained if id(variable) in left]

    def reset(self) -> None:
        """Begins new means and metrics."""
        self.task.reset()
        for mean in self.means.values():
            mean.reset_state()

    def results(self) -> dict[str, Any]:
        """The means and metrics since `reset`."""
        means = {name: float(mean.result()) for name, mean in self.means.items()}
        return {**means, **self.task.results()}

    @property
    def variables(self) -> list[Any]:
        """Everything a step changes: weights, seeds, optimizer, loss scale, means, metrics."""
        scale = [] if self.scale is None else self.scale.variables
        means = [variable for mean in self.means.values() for variable in mean.variables]
        rate = self.optimizer.learning_rate  # no schedule: tf_keras leaves it out of the variables
        alone = isinstance(rate, tf.Variable)
        return [
            *self.model.weights,
            *self._seeds,
            *self.optimizer.variables,
            *[rate] * alone,
            *scale,
            *means,
            *self.task.variables,
        ]

    def state(self) -> list[np.ndarray]:
        """The values of `variables`."""
        return [variable.numpy() for variable in self.variables]

    def restore(self, arrays: Sequence[np.ndarray]) -> None:
        """Assigns the values that `state` gave, also after a way through a file."""
        assign(self.variables, arrays)


def assign(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    """Assigns values to variables, also values that come from a file."""
    for variable, array in zip(variables, arrays, strict=True):
        if array.dtype.kind == "V":  # bfloat16 comes back from a file as plain bytes
            array = array.view(tf.as_dtype(variable.dtype).as_numpy_dtype)
        variable.assign(array)
