"""Keras layers: convolutions of low rank or with skipped positions, and stretches of them in one.

Here is what a model is built of, called with and saved as; what reads or rewrites a whole model may
not be here.
"""

import importlib
import sys
from types import ModuleType

from espace_tf.keras_layers import registration
from espace_tf.keras_layers.decomposed_conv2d import DecomposedConv2D
from espace_tf.keras_layers.fused import FusedGraph
from espace_tf.keras_layers.masked_conv2d import MaskedConv2D

__all__ = [
    "DecomposedConv2D",
    "FusedGraph",
    "MaskedConv2D",
    "for_library",
]

registration.register()


def for_library(library: ModuleType) -> ModuleType:
    """The module with the classes `MaskedConv2D` and `DecomposedConv2D` for one Keras library.

    Args:
        library: the module `keras` or `tf_keras`.

    Raises:
        TypeError: another module.

    Example:
        >>> import keras
        >>> for_library(keras).MaskedConv2D is MaskedConv2D
        True
    """
    name = getattr(library, "__name__", repr(library)).split(".")[0]
    if name == "keras":
        return sys.modules[__name__]
    if name != "tf_keras":
        raise TypeError(f"library must be the module keras or tf_keras. Received: {library!r}")
    return importlib.import_module(registration.LEGACY)
