"""The convolution layers for tf_keras (Keras 2) models: as their Keras 3 namesakes.

Imports tf_keras. A file of tf_keras names this module, which is why the classes are written out.
"""

from typing import Any

import tf_keras

from espace_tf.keras_layers import decomposed_conv2d, masked_conv2d


class _Trimmed:
    """What tensorflow-model-optimization asks a layer that it is to prune or to cluster."""

    def get_prunable_weights(self) -> list[Any]:
        """The kernels."""
        return [weight for _, weight in self.get_clusterable_weights()]

    def get_clusterable_weights(self) -> list[tuple[str, Any]]:
        """The kernels with the names of their attributes."""
        return [(link.weight, getattr(self, link.weight)) for link in self._chain()]

    def get_clusterable_algorithm(self, weight_name: str) -> None:
        """No other algorithm than for any weight."""


_register = tf_keras.utils.register_keras_serializable("espace_tf")


@_register
class MaskedConv2D(_Trimmed, masked_conv2d.MaskedConv2DMixin, tf_keras.layers.Layer):
    """`espace_tf.keras_layers.MaskedConv2D` for tf_keras."""

    _keras = tf_keras


@_register
class DecomposedConv2D(_Trimmed, decomposed_conv2d.DecomposedConv2DMixin, tf_keras.layers.Layer):
    """`espace_tf.keras_layers.DecomposedConv2D` for tf_keras."""

    _keras = tf_keras
