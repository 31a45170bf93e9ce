"""The task that a network was trained for: the loss and the metrics of its labels."""

from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.distribution import replicas, shares
from espace_tf.network import graph
from espace_tf.network.copies.borrowed import compile_again, copies
from espace_tf.objectives import labels, losses
from espace_tf.objectives.judge import ACCURACIES


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
        team: the replicas that the model is on; where there are several, metrics are copies.

    Attributes:
        outputs: what is known of each output.

    Raises:
        ValueError: no loss is known for the labels, or loss, metrics and labels do not go together.
    """

    def __init__(
        self, model, batch, *, loss: Any = None, metrics: Any = None, team: Any | None = None
    ):
        self.model, self.judge = model, None
        self.team = team or replicas.Replicas()
        x, y, weight = batch
        outputs = graph.forward(model, x)
        compiled, _ = graph.compiled_loss(model)
        if loss is None and compiled is not None and metrics is not None and y is not None:
            raise ValueError(
                "metrics must be given together with loss: the model is compiled and judges with "
                f"its own. Received: metrics={metrics!r}"
            )
        self.outputs = losses.of_outputs(model, outputs, y, loss)
        self._shapes = [tf.TensorSpec(shape) for shape in _shapes(model, outputs)]
        if y is not None:
            self.check_labels(y)
            own = loss is None and compiled is not None
            try:
                alone = self.team.strategy is None
                self.judge = model if own and alone else self._judge(metrics, own, outputs)
                self._try(x, y, outputs, weight)
            except Exception as error:  # Each library raises its own kinds.
                raise ValueError(_words(loss, metrics, y, outputs, error)) from error

    def _judge(self, metrics: Any, own: bool, outputs: Any) -> Any:
        """An empty model that is compiled with the losses, or as the model is."""
        judge = graph.library(self.model).Model(name="judge")
        judge.output_names = getattr(self.model, "output_names", None)
        if own:
            compile_again(judge, self.model)
            return judge
        given = [each.loss for each in self.outputs]
        if metrics is None and len(given) == 1 and self.outputs[0].kind in ACCURACIES:
            metrics = [ACCURACIES[self.outputs[0].kind]]
        metrics = metrics if self.team.strategy is None else copies(metrics)
        given = given[0] if len(given) == 1 else given
        if losses.is_nested(outputs):
            given = tf.nest.pack_sequence_as(outputs, given)
        judge.compile(loss=given, metrics=metrics)
        return judge

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
        if y is not None:
            given = [each.loss for each in self.outputs]
            found = losses.in_order(y, [each.name for each in self.outputs], "labels", given)
            labels.check(given, self._shapes, found, name)

    def loss(self, x, y, outputs, weight, rows: Any) -> tf.Tensor:
        """The task loss with the model's regularisation, a float32 scalar.

        Args:
            x, y, weight: a batch.
            outputs: the model's, of the whole batch.
            rows: samples in the batch.
        """
        value = tf.constant(0.0)
        if self.judge is not None:
            with self.team.losses_of_whole_batches(graph.library(self.model)):
                value += tf.cast(self.judge.compute_loss(x, y, outputs, weight), tf.float32)
        if self.judge is not self.model:
            for extra in self.model.losses:
                value += shares.mean(tf.cast(tf.reduce_sum(extra), tf.float32), rows)
        return value

    def update(self, x, y, outputs, weight) -> None:
        """Adds a batch to the metrics."""
        if self.judge is not None:
            self.judge.compute_metrics(x, y, outputs, weight)

    def results(self) -> dict[str, Any]:
        """The metrics' values since `reset`: numbers, and arrays where a metric has several."""
        found = {} if self.judge is None else self.judge.get_metrics_result()
        flat = {}
        for name, value in found.items():
            flat.update(value if isinstance(value, dict) else {name: value})
        arrays = {name: np.asarray(value) for name, value in flat.items() if name != "loss"}
        return {name: array if array.ndim else float(array) for name, array in arrays.items()}

    def reset(self) -> None:
        """Forgets the batches of the metrics."""
        if self.judge is not None:
            self.judge.reset_metrics()

    @property
    def variables(self) -> list[Any]:
        """The metrics' variables."""
        metrics = [] if self.judge is None else self.judge.metrics
        return [variable for metric in metrics for variable in metric.variables]


def _shapes(model: Any, outputs: Any) -> list[Any]:
    """The shape of each output: that of the graph, which leaves sizes open, where there is one."""
    if getattr(model, "outputs", None):
        outputs = graph.structure(model, "output")
    return [each.shape for each in tf.nest.flatten(outputs)]


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
