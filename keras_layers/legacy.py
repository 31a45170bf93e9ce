"""The same layers for tf_keras (Keras 2) models, made when first asked for."""

import functools

from espace_tf.keras_layers.decomposed_conv2d import DecomposedConv2D, DecomposedConv2DMixin
from espace_tf.keras_layers.masked_conv2d import MaskedConv2D, MaskedConv2DMixin

MIXINS = {"MaskedConv2D": MaskedConv2DMixin, "DecomposedConv2D": DecomposedConv2DMixin}
_DOCS = {"MaskedConv2D": MaskedConv2D.__doc__, "DecomposedConv2D": DecomposedConv2D.__doc__}


@functools.cache
def layer_class(name: str) -> type:
    """The tf_keras layer with the arguments, weights and results of its Keras 3 namesake.

    Registered in tf_keras as "espace_tf>name": call this before loading a saved model.

    Args:
        name: "MaskedConv2D" or "DecomposedConv2D".

    Raises:
        ValueError: another name.
        ImportError: tf_keras is not installed.

    Example:
        >>> layer = layer_class("MaskedConv2D")(8, 3, positions=[0, 5])
    """
    if name not in MIXINS:
        raise ValueError(f"name must be one of {sorted(MIXINS)}. Received: {name!r}")
    import tf_keras

    members = {"_keras": tf_keras, "__module__": __name__, "__doc__": _DOCS[name]}
    made = type(name, (MIXINS[name], tf_keras.layers.Layer), members)
    return tf_keras.utils.register_keras_serializable("espace_tf")(made)
