"""The masked convolution, its companions, and the index maps that drive them.

Loads lazily: `espace_tf.kernels.index_map` needs NumPy only, the operators bring TensorFlow.
"""

import importlib
import sys
import types

_HOMES = {
    "apply_map": "masked_conv2d",
    "avg_pool": "pooling",
    "backend": "masked_conv2d",
    "conv2d": "masked_conv2d",
    "masked_conv2d": "masked_conv2d",
    "masked_depthwise_conv2d": "depthwise",
    "max_pool": "pooling",
    "plain": "masked_conv2d",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"espace_tf.kernels.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Keeps `kernels.masked_conv2d` the function when Python binds the submodule of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "masked_conv2d" and isinstance(value, types.ModuleType):
            value = value.masked_conv2d
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
