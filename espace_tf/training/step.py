"""One step of fine-tuning, and the state that lives between two steps."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data import labels
from espace_tf.network import graph
from espace_tf.network.tracing import traced
from espace_tf.training.distillation import Teacher, is_classification, sums_to_one

GROWTH_STEPS = 2000


class Task:
    """The loss and the metrics of the labels.

    A compiled model judges with its own; with `loss` given, or an uncompiled model, an empty model
    is compiled to judge, so that the trained one keeps its compile state.

    Args:
        model: the model to train.
        batch: (x, y, sample_weight), a first batch; y None: no labels, the loss is only the
            model's regularisation.
        loss: as in `compile`, or None.
        metrics: as in `compile`, or None.

    Attributes:
        losses: the loss of each output in the order of tf.nest.flatten, None where unknown.

    Raises:
        ValueError: no loss is known for the labels, or loss, metrics and labels do not go together.
    """

    def __init__(self, model, batch, *, loss: Any = None, metrics: Any = None):
        self.model = model
        x, y, weight = batch
        outputs = model(x, training=False)
        compiled = getattr(model, "loss", None)
        if loss is None and compiled is None and y is not None:
            loss = _inferred_loss(graph.library(model), y, outputs)
        elif loss is None and metrics is not None and y is not None:
            raise ValueError(
                "metrics must be given together with loss: the model is compiled and judges with "
                f"its own. Received: metrics={metrics!r}"
            )
        self.losses = _per_output(loss if loss is not None else compiled, outputs, model)
        self._outputs = [tf.TensorSpec(each.shape) for each in tf.nest.flatten(outputs)]
        self._names = sorted(outputs) if isinstance(outputs, dict) else _output_names(model)
        self.judge = None
        if y is not None:
            self.check_labels(y)
            own = loss is None
            try:
                self.judge = model if own else _judge(model, loss, metrics, self.losses)
                self._try(x, y, outputs, weight)
            except Exception as error:  # Each library raises its own kinds.
                raise ValueError(_words(loss, metrics, y, outputs, error)) from error

    def _try(self, x, y, outputs, weight) -> None:
        """Judges one batch, which makes the metrics' variables, and forgets it."""
        y = tf.nest.map_structure(tf.convert_to_tensor, y)
        weight = None if weight is None else tf.nest.map_structure(tf.convert_to_tensor, weight)
        self.judge.compute_loss(x, y, outputs, weight)
        self.judge.compute_metrics(x, y, outputs, weight)
        self.judge.reset_metrics()

    def check_labels(self, y: Any, name: str = "data") -> None:
        """Raises ValueError if labels of a categorical cross-entropy are no classes.

        Args:
            y: labels of a batch or of all the data; None: nothing to check.
            name: the argument that they were given by, for errors.
        """
        by_name = isinstance(y, dict) and set(y) == set(self._names)
        flat = [y[name] for name in self._names] if by_name else tf.nest.flatten(y)
        if len(flat) == len(self._outputs) and y is not None:
            labels.check(self.losses, self._outputs, flat, name)

    def loss(self, x, y, outputs, weight) -> tf.Tensor:
        """The task loss with the model's regularisation, a float32 scalar."""
        total = tf.constant(0.0)
        if self.judge is not None:
            total += tf.cast(self.judge.compute_loss(x, y, outputs, weight), tf.float32)
        if self.judge is not self.model:
            for extra in self.model.losses:
                total += tf.cast(tf.reduce_sum(extra), tf.float32)
        return total

    def update(self, x, y, outputs, weight) -> None:
        """Adds a batch to the metrics."""
        if self.judge is not None:
            self.judge.compute_metrics(x, y, outputs, weight)

    def results(self) -> dict[str, float]:
        """The metrics' values since `reset`."""
        found = {} if self.judge is None else self.judge.get_metrics_result()
        return {name: float(value) for name, value in found.items() if name != "loss"}

    def reset(self) -> None:
        """Forgets the batches of the metrics."""
        if self.judge is not None:
            self.judge.reset_metrics()

    @property
    def variables(self) -> list[Any]:
        """The metrics' variables."""
        metrics = [] if self.judge is None else self.judge.metrics
        return [variable for metric in metrics for variable in metric.variables]


def _judge(model, loss, metrics, losses):
    judge = graph.library(model).Model(name="judge")
    judge.output_names = getattr(model, "output_names", None)
    if metrics is None and len(losses) == 1 and is_classification(losses[0]):
        metrics = ["accuracy"]
    judge.compile(loss=loss, metrics=metrics)
    return judge


def _output_names(model) -> list[str]:
    return list(getattr(model, "output_names", None) or [])


def _words(loss, metrics, y, outputs, error: Exception) -> str:
    """Why a first batch could not be judged."""
    given = {"loss": loss, "metrics": metrics}
    plain = {
        name: type(value).__name__ if hasattr(value, "get_config") else value
        for name, value in given.items()
        if value is not None
    }
    received = [f"{name}={value!r}" for name, value in plain.items()]
    shapes = [[tuple(v.shape) for v in tf.nest.flatten(each)] for each in (y, outputs)]
    return (
        "loss, metrics and labels must go with the model's outputs, as in compile. Received: "
        f"{', '.join([*received, f'labels of shapes {shapes[0]}'])}, outputs of shapes "
        f"{shapes[1]}: {error}"
    )


def _inferred_loss(library, y, outputs):
    flat, found = tf.nest.flatten(outputs), tf.nest.flatten(y)
    if len(flat) == len(found) == 1 and flat[0].shape.rank > 1 and flat[0].shape[-1] > 1:
        shapes = (flat[0].shape[:-1], [*flat[0].shape[:-1], 1])
        label, from_logits = tf.convert_to_tensor(found[0]), not sums_to_one(flat[0])
        if label.dtype.is_integer and any(label.shape == shape for shape in shapes):
            return library.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        if label.shape == flat[0].shape and sums_to_one(label):
            return library.losses.CategoricalCrossentropy(from_logits=from_logits)
    raise ValueError(
        "loss must be given, or the model be compiled with one: it is only inferred for integer or "
        "one-hot labels and one output of class scores. Received: labels "
        f"{[(np.asarray(label).dtype.name, np.shape(label)) for label in found]}, outputs "
        f"{[tuple(output.shape) for output in flat]}"
    )


def _per_output(loss: Any, outputs: Any, model) -> list[Any]:
    count = len(tf.nest.flatten(outputs))
    if isinstance(loss, dict):
        names = sorted(outputs) if isinstance(outputs, dict) else getattr(model, "output_names", [])
        loss = [loss.get(name) for name in names]
    if isinstance(loss, (list, tuple)):
        return list(loss) if len(loss) == count else [None] * count
    return [loss] * count


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

    def apply(self, gradients: Sequence[tf.Tensor | None], apply) -> None:
        """Calls `apply` with the unscaled gradients if all of them are finite; adapts the scale."""
        gradients = [None if g is None else tf.cast(g, tf.float32) / self.scale for g in gradients]
        finite = tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(g)) for g in gradients if g is not None]
        )

        def good():
            apply(gradients)
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
        seed: of Keras 3's random layers.

    Raises:
        ValueError: the model has nothing to train.
    """

    def __init__(
        self, model, task: Task, teacher: Teacher | None, optimizer, weights, *, seed: int
    ):
        self.model, self.task, self.teacher, self.optimizer = model, task, teacher, optimizer
        self.weights = weights
        self.trained = list(model.trainable_variables)
        if not self.trained:
            raise ValueError(
                f"model must have trainable weights. Received: {model.name}, with every layer's "
                "trainable False: set trainable=True on the layers to train"
            )
        optimizer.build(self.trained)
        half = any(
            _dtype_name(getattr(layer, "compute_dtype", None)) == "float16"
            for layer in graph.layers(model).values()
        )
        self.scale = LossScale() if half else None
        names = ["loss", *["task_loss"] * (task.judge is not None)]
        names += ["distillation_loss"] * (teacher is not None)
        names += ["feature_loss"] * (teacher is not None and bool(teacher.features))
        mean = graph.library(model).metrics.Mean
        self.means = {name: mean(name=name) for name in names}
        self._seeds = _seed_states(model)
        for index, state in enumerate(self._seeds):
            state.assign(np.array([seed, index]).astype(state.dtype))
        self.step = traced(self._step)
        self.faded_step = traced(self._step)  # with layers that read a fade
        self.evaluate = traced(self._evaluate)

    def _losses(self, x, y, weight, targets, training: bool) -> tuple[Any, tf.Tensor]:
        """The outputs and the total loss of a batch; its terms go into the means."""
        with self.teacher.record() if self.teacher else nullcontext() as calls:
            outputs = self.model(x, training=training)
        task = self.task.loss(x, y, outputs, weight)
        terms = {} if self.teacher is None else self.teacher.terms(targets, outputs, calls)
        total = task + sum(self.weights[name] * term for name, term in terms.items())
        for name, value in {"loss": total, "task_loss": task, **terms}.items():
            if name in self.means:
                self.means[name].update_state(value)
        return outputs, total

    def _step(self, x, y, weight) -> tf.Tensor:
        targets = None if self.teacher is None else self.teacher.targets(x)
        with tf.GradientTape() as tape:
            outputs, total = self._losses(x, y, weight, targets, True)
            scaled = total if self.scale is None else total * self.scale.scale
        watched = [v if isinstance(v, tf.Variable) else v.value for v in self.trained]
        gradients = tape.gradient(scaled, watched)
        if self.scale is None:
            self._apply(gradients)
        else:
            self.scale.apply(gradients, self._apply)
        self.task.update(x, y, outputs, weight)
        return total

    def _apply(self, gradients: Sequence[tf.Tensor | None]) -> None:
        pairs = zip(gradients, self.trained, strict=True)
        self.optimizer.apply_gradients([pair for pair in pairs if pair[0] is not None])

    def _evaluate(self, x, y, weight) -> None:
        targets = None if self.teacher is None else self.teacher.targets(x)
        outputs, _ = self._losses(x, y, weight, targets, False)
        self.task.update(x, y, outputs, weight)

    def reset(self) -> None:
        """Begins new means and metrics."""
        self.task.reset()
        for mean in self.means.values():
            mean.reset_state()

    def results(self) -> dict[str, float]:
        """The means and metrics since `reset`."""
        means = {name: float(mean.result()) for name, mean in self.means.items()}
        return {**means, **self.task.results()}

    @property
    def variables(self) -> list[Any]:
        """Everything a step changes: weights, seeds, optimizer, loss scale, means, metrics."""
        scale = [] if self.scale is None else self.scale.variables
        means = [variable for mean in self.means.values() for variable in mean.variables]
        return [
            *self.model.weights,
            *self._seeds,
            *self.optimizer.variables,
            *scale,
            *means,
            *self.task.variables,
        ]

    def state(self) -> list[np.ndarray]:
        """The values of `variables`."""
        return [variable.numpy() for variable in self.variables]

    def restore(self, arrays: Sequence[np.ndarray]) -> None:
        """Assigns the values that `state` gave, also after a way through a file."""
        for variable, array in zip(self.variables, arrays, strict=True):
            if array.dtype.kind == "V":  # bfloat16 comes back from a file as plain bytes
                array = array.view(tf.as_dtype(variable.dtype).as_numpy_dtype)
            variable.assign(array)


def _seed_states(model) -> list[Any]:
    """The states of Keras 3's random layers, which are no weights."""
    known = getattr(model, "variables", [])
    return [v for v in known if getattr(v, "path", "").endswith("seed_generator_state")]


def _dtype_name(dtype: Any) -> str | None:
    return None if dtype is None else tf.as_dtype(dtype).name
