"""A few hundred steps of Adam that make a model imitate another one, at inference."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.network import graph, recording
from espace_tf.network.tracing import traced
from espace_tf.objectives.losses import TINY, OutputLoss
from espace_tf.training import learning_rate
from espace_tf.training.best import Best
from espace_tf.training.steps.distillation import Teacher, output_distillation, relative_error
from espace_tf.training.steps.safe_steps import safe_steps
from espace_tf.training.steps.step import LossScale, assign

_TEMPERATURE = 2.0
_LOOKS = 4  # at the held-out images
# Of so few steps none is left to find a rate with: they are taken at this one.
_FEW, _USUAL = 50, 3e-4
_MEMORY = 5e8  # bytes of the teacher's answers that are kept instead of computed again


class Descent:
    """Trains a model to have a teacher's outputs and last maps, batch norms as they are.

    The loss is that of the outputs, see `output_distillation`, and as much again at most of the
    last maps' relative error.

    Args:
        model: trained in place.
        teacher: a private copy of the model it imitates.
        images: batches to train on.
        few: one small batch, to find the last maps with.
        outputs: what is known of each output.
        best: where weights are noted.
        judge: gives the loss on held-out images.

    Attributes:
        advance: told of every step that is taken.
    """

    def __init__(
        self,
        model: Any,
        teacher: Any,
        images: list[Any],
        few: Any,
        outputs: list[OutputLoss],
        best: Best,
        judge: Callable[[], float],
    ):
        self._model, self._best, self._judge, self._outputs = model, best, judge, outputs
        options = {"outputs": outputs, "temperature": _TEMPERATURE, "features": "auto"}
        self._features = Teacher(teacher, model, few, private=True, **options).features
        self._targets = traced(lambda x: self._answers(teacher, x))
        self._images, self._kept = images, None
        found = self._targets(images[0])
        if sum(_bytes(each) for each in tf.nest.flatten(found)) * len(images) <= _MEMORY:
            self._kept = [found, *map(self._targets, images[1:])]
        self._optimizer = graph.library(model).optimizers.Adam(learning_rate.RATES[0])
        self._trained = list(model.trainable_variables)
        self._optimizer.build(self._trained)
        self._scale = LossScale() if graph.is_half(model) else None
        self._step = traced(self._one_step)
        self.advance: Callable[[int], None] = lambda count: None

    def run(self, steps: int, end: float, seed: int) -> None:
        """Takes steps; notes the weights now and then.

        Args:
            steps: how many.
            end: no step is begun after this time, of time.perf_counter.
            seed: of the order of batches.
        """
        start = [variable.numpy() for variable in self._variables]

        def loss_after(rate: float) -> float:
            self._descend(rate, learning_rate.trial_steps(steps) if rate else 0, end, seed)
            found = self._judge()
            assign(self._variables, start)
            return found if np.isfinite(found) else np.inf

        with safe_steps(self._model):
            rate = _USUAL if steps < _FEW else learning_rate.find(loss_after)
            self._descend(rate, steps, end, seed, looks=_LOOKS)

    def _descend(self, rate: float, steps: int, end: float, seed: int, looks: int = 0) -> None:
        annealing, start = learning_rate.Annealing(self._optimizer), time.perf_counter()
        for step, batch in zip(range(steps), self._batches(seed), strict=False):
            spent = (time.perf_counter() - start) / max(end - start, 1e-9)
            if spent >= 1:
                break
            # On a machine so slow that time ends first, the rate comes down with that.
            annealing.assign(rate, max(step, int(spent * steps)), steps)
            self._step(*batch)
            self.advance(1 if looks else 0)
            if looks and (step + 1) % max(1, steps // looks) == 0 and step + 1 < steps:
                self._best.note(step + 1, self._judge())
        if looks:
            self._best.note(steps, self._judge())

    def _batches(self, seed: int) -> Iterator[tuple[Any, Any]]:
        """Batches with the teacher's answers, for ever, each pass in an order of its own."""
        random = np.random.default_rng(seed)
        while True:
            for place in random.permutation(len(self._images)):
                x = tf.nest.map_structure(tf.convert_to_tensor, self._images[place])
                yield x, self._targets(x) if self._kept is None else self._kept[place]

    def _answers(self, model: Any, x: Any) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The outputs and the last maps of a model at inference."""
        with recording.record(model, self._features) as calls:
            outputs = tf.nest.flatten(graph.forward(model, x))
        found = {path: [] for path in self._features}
        for call in calls:
            found[call.path] += tf.nest.flatten(call.outputs)
        return outputs, [value for values in found.values() for value in values]

    def _one_step(self, x: Any, targets: Any) -> None:
        with tf.GradientTape() as tape:
            outputs, maps = self._answers(self._model, x)
            total = tf.add_n(
                [
                    output_distillation(output, ours, theirs, _TEMPERATURE)
                    for output, ours, theirs in zip(self._outputs, outputs, targets[0], strict=True)
                ]
            )
            if maps:
                pairs = zip(maps, targets[1], strict=True)
                features = tf.add_n([relative_error(*pair) for pair in pairs]) / len(maps)
                share = tf.stop_gradient(total / tf.maximum(features, TINY))
                total += features * tf.minimum(share, 1.0)
            scaled = total if self._scale is None else total * self._scale.scale
        watched = [v if isinstance(v, tf.Variable) else v.value for v in self._trained]
        gradients = tape.gradient(scaled, watched)
        if self._scale is None:
            self._apply(gradients)
        else:
            gradients = self._scale.unscaled(gradients)
            self._scale.apply(gradients, lambda: self._apply(gradients))

    def _apply(self, gradients: list[Any]) -> None:
        pairs = zip(gradients, self._trained, strict=True)
        self._optimizer.apply_gradients([pair for pair in pairs if pair[0] is not None])

    @property
    def _variables(self) -> list[Any]:
        """Everything that a step changes."""
        scale = [] if self._scale is None else self._scale.variables
        return [*self._model.weights, *self._optimizer.variables, *scale]


def _bytes(tensor: tf.Tensor) -> int:
    return int(tf.size(tensor)) * tensor.dtype.size
