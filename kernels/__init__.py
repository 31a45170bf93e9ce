"""The masked convolution and the index maps that drive it.

Loads lazily: `espace_tf.kernels.index_map` needs NumPy only, the operator brings TensorFlow.
"""

import importlib
import sys
import types

__all__ = ["apply_map", "backend", "conv2d", "masked_conv2d", "plain"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("espace_tf.kernels.masked_conv2d"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Keeps `kernels.masked_conv2d` the function when Python binds the submodule of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "masked_conv2d" and isinstance(value, types.ModuleType):
            value = value.masked_conv2d
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
