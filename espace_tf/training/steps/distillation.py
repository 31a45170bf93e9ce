"""The loss of fine-tuning: the teacher's outputs and last maps, beside the loss of the task."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from espace_tf.distribution import shares
from espace_tf.network import graph, recording
from espace_tf.network.copies import cloning
from espace_tf.network.layer_rules import rule
from espace_tf.objectives.losses import TINY, OutputLoss, divergence

Calls = tuple[list[recording.Call], list[recording.Call]]


def output_distillation(
    output: OutputLoss, student: tf.Tensor, teacher: tf.Tensor, temperature: float
) -> tf.Tensor:
    """How far an output is from the teacher's (a scalar), float32.

    Of classes and labels T^2 KL(teacher || student), softened by T and averaged over all rows
    (Hinton et al., arXiv:1503.02531: the factor T^2 keeps the gradient's size when T changes); of
    values `relative_error`.

    Args:
        output: what is known of it.
        student: logits or probabilities as `output` says, or values.
        teacher: the same of the teacher.
        temperature: T > 0.

    Example:
        >>> (output,) = losses.of_outputs(model, model(images))
        >>> float(output_distillation(output, model(images), model(images), 4.0))
        0.0
    """
    if output.kind == "values":
        return relative_error(student, teacher)
    logs = (output.log_probabilities(scores, temperature) for scores in (teacher, student))
    return temperature**2 * divergence(*logs)


def relative_error(
    student: tf.Tensor, teacher: tf.Tensor, total: Callable[[tf.Tensor], tf.Tensor] = tf.identity
) -> tf.Tensor:
    """sum (student - teacher)^2 / sum teacher^2 over the whole batch, float32 (a scalar).

    Relative, so that features that differ in size count alike.

    Args:
        student, teacher: the batch, or a replica's part of it.
        total: makes the sum over the batch of the sum over a part.
    """
    student, teacher = tf.cast(student, tf.float32), tf.cast(teacher, tf.float32)
    size = total(tf.reduce_sum(tf.square(teacher)))
    error = total(tf.reduce_sum(tf.math.squared_difference(student, teacher)))
    return error / tf.maximum(size, TINY)


def last_maps(model, inputs: Any) -> list[str]:
    """Paths of the layers whose output is the last map of each resolution.

    These are the last outputs before each spatial downsampling (a strided convolution, a pooling)
    and before global pooling or flattening, except outputs that no weights have touched yet.

    Args:
        model: a Keras 3 or tf_keras model.
        inputs: one small batch; the model runs on it once.

    Returns:
        Layer paths in the order of execution; empty for a model without spatial maps.
    """
    layers = graph.layers(model)
    _, calls = _call(model, list(layers), inputs)
    producers: dict[int, str] = {}
    found, learned = [], False
    for call in calls:
        given = [producers.get(id(value)) for value in tf.nest.flatten(call.inputs)]
        for path, value in zip(given, tf.nest.flatten(call.inputs), strict=True):
            if path and path not in found and _shrinks(value, call.outputs):
                found.append(path)
        learned = learned or bool(layers[call.path].weights)
        if learned:
            noise = rule(layers[call.path]).kind == "identity"  # the source is what matters
            for value in tf.nest.flatten(call.outputs):
                producers.setdefault(id(value), given[0] if noise else call.path)
    return found


def _shrinks(value: Any, outputs: Any) -> bool:
    """True if a layer leaves at most half of the positions of the map `value`."""
    if not tf.is_tensor(value) or value.shape.rank != 4:
        return False
    before = value.shape[1] * value.shape[2]
    for output in tf.nest.flatten(outputs):
        rank = output.shape.rank
        after = output.shape[1] * output.shape[2] if rank == 4 else 1
        if before > 1 and 2 * after <= before:
            return True
    return False


class Teacher:
    """The uncompressed network, as the loss terms see it: outputs and last maps to imitate.

    Outputs are compared by `output_distillation`; the terms of several are added. Last maps are
    compared by `relative_error`, averaged.

    Args:
        model: the teacher. A copy of it is made and called, with training=False; a model with a
            call of its own, which cannot be copied, is called itself.
        student: the model that is trained.
        inputs: one small batch, to compare the two models' outputs and find the last maps.
        outputs: what is known of each output.
        temperature: T of outputs that are probabilities, > 0.
        features: "auto" for the last maps that both models have alike, None for none, or paths of
            layers of both models.
        private: whether the teacher is a copy already, that nobody else calls.

    Raises:
        ValueError: outputs or features of the two models do not match.
    """

    def __init__(
        self,
        model,
        student,
        inputs: Any,
        *,
        outputs: Sequence[OutputLoss],
        temperature: float,
        features: str | list[str] | None,
        private: bool = False,
    ):
        if not private and graph.is_container(model):
            model = cloning.private_copy(model)
        self.model, self.student, self.temperature = model, student, temperature
        wanted, given = graph.forward(model, inputs), graph.forward(student, inputs)
        check_outputs(wanted, given)
        self.outputs = outputs
        self.features = self._find_features(features, inputs)

    def _find_features(self, features, inputs) -> list[str]:
        theirs, ours = graph.layers(self.model), graph.layers(self.student)
        if isinstance(features, str) and features == "auto":
            last = [path for path in last_maps(self.model, inputs) if path in ours]
            alike = self._alike(last, inputs)
            return [path for path in last if alike[path]]
        asked = [features] if isinstance(features, str) else list(features or ())
        missing = [path for path in asked if path not in ours or path not in theirs]
        if missing:
            raise ValueError(
                'features must be "auto", None, or paths of layers that both the model and the '
                f"teacher have. Received: {missing[0]!r}; the model's layers: {', '.join(ours)}"
            )
        odd = [path for path, alike in self._alike(asked, inputs).items() if not alike]
        if odd:
            raise ValueError(
                "features must be layers whose outputs have one shape in the model and the "
                f"teacher. Received: {odd[0]!r}; leave it out"
            )
        return asked

    def _alike(self, paths: Sequence[str], inputs: Any) -> dict[str, bool]:
        """Whether a layer has outputs of the same shapes in both models, by path."""
        shapes = []
        for model in (self.model, self.student):
            _, calls = _call(model, paths, inputs)
            shapes.append(
                {path: [tuple(v.shape) for v in _by_path(calls, [path])] for path in paths}
            )
        return {path: shapes[0][path] == shapes[1][path] for path in paths}

    @contextlib.contextmanager
    def record(self) -> Iterator[Calls]:
        """The context in which both models' calls are recorded for `terms`."""
        with recording.record(self.model, self.features) as theirs:
            with recording.record(self.student, self.features) as ours:
                yield theirs, ours

    def terms(self, inputs: Any, outputs: Any, calls: Calls, rows: Any) -> dict[str, tf.Tensor]:
        """The unweighted distillation_loss and, with features, feature_loss: scalars, float32.

        Args:
            inputs: a batch, or a replica's part of it, that the student has been called on.
            outputs: the student's outputs, of the whole batch.
            calls: what `record` gave.
            rows: samples in the batch.
        """
        theirs, ours = calls
        wanted = tf.nest.flatten(graph.forward(self.model, inputs))
        wanted = [tf.stop_gradient(each) for each in shares.whole(wanted, rows)]
        flat = tf.nest.flatten(outputs)
        each = [
            output_distillation(output, ours, theirs, self.temperature)
            for output, ours, theirs in zip(self.outputs, flat, wanted, strict=True)
        ]
        result = {"distillation_loss": tf.add_n(each)}
        if self.features:
            found = (_by_path(each, self.features) for each in (ours, theirs))
            errors = [relative_error(*pair, shares.total) for pair in zip(*found, strict=True)]
            result["feature_loss"] = tf.add_n(errors) / len(errors)
        return result


def _call(model, paths: Sequence[str], inputs: Any) -> tuple[Any, list[recording.Call]]:
    """The outputs of a model at inference and the calls of some of its layers."""
    with recording.record(model, paths) as calls:
        return graph.forward(model, inputs), calls


def _by_path(calls: list[recording.Call], paths: list[str]) -> list[tf.Tensor]:
    """Outputs of this thread's calls, path after path (a shared layer has one for every call)."""
    return [
        value
        for path in paths
        for call in calls
        if call.path == path and call.thread == threading.get_ident()
        for value in tf.nest.flatten(call.outputs)
    ]


def check_outputs(teacher: Any, student: Any) -> None:
    """Raises ValueError unless the outputs of two models have the same shapes."""
    shapes = [[tuple(v.shape) for v in tf.nest.flatten(outputs)] for outputs in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "teacher must have the model's outputs, shape for shape. Received, for one batch: "
            f"{shapes[0]} from the teacher, {shapes[1]} from the model"
        )
