"""One number that all masks of a model fade in with while it trains."""

from typing import Any

import tensorflow as tf

from espace_tf.network import graph


class Fade:
    """One variable that all masked layers of a model read while the context is open.

    Args:
        model: a Keras 3 or tf_keras model with masked layers.
        steps: how many training steps run between two calls of `assign`.
        counter: where there are several, the optimizer's variable that counts them.

    Raises:
        ValueError: no layer of the model has a mask.

    Example:
        >>> fade = Fade(small)
        >>> fade.assign(0.5)
        >>> with fade:
        ...     loss = train_step(batch)
    """

    def __init__(self, model, steps: int = 1, counter: Any = None):
        layers = graph.layers(model).values()
        self.layers = [layer for layer in layers if getattr(layer, "positions", None) is not None]
        if not self.layers:
            raise ValueError(
                "A schedule of masks needs a model with masked layers. Received: "
                f"{model.name}, which has none: leave the schedule out, or apply a plan that "
                "keeps positions"
            )
        with model.distribute_strategy.scope():
            self.variable = tf.Variable(0.0, trainable=False, name="fade")
            self._coming = tf.Variable([0.0] * steps, trainable=False, name="coming_fades")
            self._first = tf.Variable(0, dtype=tf.int64, trainable=False, name="first_step")
        self._counter = counter if steps > 1 else None

    def assign(self, *values: float, first: int = 0) -> None:
        """Sets the fade of each of the coming steps; functions that are already traced see it.

        Args:
            *values: one per step.
            first: the step of the first of them, as the counter has it.
        """
        self.variable.assign(values[-1])
        self._coming.assign(values)
        self._first.assign(first)

    def __enter__(self) -> "Fade":
        for layer in self.layers:
            layer.fade = self._read
        return self

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            layer.fade = None

    def _read(self) -> tf.Tensor:
        if self._counter is None:
            return tf.convert_to_tensor(self.variable)
        step = tf.cast(tf.convert_to_tensor(self._counter), tf.int64) - self._first
        return tf.gather(self._coming, tf.clip_by_value(step, 0, self._coming.shape[0] - 1))
