"""Keras layers: convolutions of low rank and convolutions that skip output positions."""

from types import ModuleType, SimpleNamespace

from espace_tf.keras_layers.decomposed_conv2d import DecomposedConv2D
from espace_tf.keras_layers.fused import FusedGraph
from espace_tf.keras_layers.masked_conv2d import MaskedConv2D

__all__ = [
    "DecomposedConv2D",
    "FusedGraph",
    "MaskedConv2D",
    "for_library",
]


def for_library(library: ModuleType) -> SimpleNamespace:
    """The layer classes for models of one Keras library.

    Args:
        library: the module `keras` or `tf_keras`.

    Returns:
        A namespace with `MaskedConv2D` and `DecomposedConv2D`.

    Raises:
        TypeError: another module.

    Example:
        >>> import keras
        >>> for_library(keras).MaskedConv2D is MaskedConv2D
        True
    """
    name = getattr(library, "__name__", repr(library)).split(".")[0]
    if name == "keras":
        return SimpleNamespace(MaskedConv2D=MaskedConv2D, DecomposedConv2D=DecomposedConv2D)
    if name != "tf_keras":
        raise TypeError(f"library must be the module keras or tf_keras. Received: {library!r}")
    from espace_tf.keras_layers import legacy

    return SimpleNamespace(**{name: legacy.layer_class(name) for name in legacy.MIXINS})
