"""One number that all masks of a model fade in with while it trains."""

import tensorflow as tf

from espace_tf.network import graph


class Fade:
    """One variable that all masked layers of a model read while the context is open.

    Args:
        model: a Keras 3 or tf_keras model with masked layers.

    Raises:
        ValueError: no layer of the model has a mask.

    Example:
        >>> fade = Fade(model)
        >>> fade.assign(0.5)
        >>> with fade:
        ...     loss = train_step(batch)
    """

    def __init__(self, model):
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

    def assign(self, value: float) -> None:
        """Sets the fade; functions that are already traced see it."""
        self.variable.assign(value)

    def __enter__(self) -> "Fade":
        for layer in self.layers:
            layer.fade = self._read
        return self

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            layer.fade = None

    def _read(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.variable)
