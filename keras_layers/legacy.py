"""The convolution layers for tf_keras (Keras 2) models: as their Keras 3 namesakes.

Imports tf_keras. A file of tf_keras names this module, which is why the classes are written out.
"""

import tf_keras

from espace_tf.keras_layers import decomposed_conv2d, masked_conv2d

_register = tf_keras.utils.register_keras_serializable("espace_tf")


@_register
class MaskedConv2D(masked_conv2d.MaskedConv2DMixin, tf_keras.layers.Layer):
    """`espace_tf.keras_layers.MaskedConv2D` for tf_keras."""

    _keras = tf_keras


@_register
class DecomposedConv2D(decomposed_conv2d.DecomposedConv2DMixin, tf_keras.layers.Layer):
    """`espace_tf.keras_layers.DecomposedConv2D` for tf_keras."""

    _keras = tf_keras
