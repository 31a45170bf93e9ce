"""The masked operators on rows, in TensorFlow and in C++, and the integers that drive them.

Here is what runs a call and what describes one (`index_map` and `program` need NumPy only; in C++
core/params.h and core/program.h say the same); layers, models and the choice of what to skip may
not be here.
"""

import importlib

__all__ = [
    "apply_map",
    "avg_pool",
    "backend",
    "conv2d",
    "masked_conv2d",
    "masked_depthwise_conv2d",
    "max_pool",
    "plain",
]


def __getattr__(name: str):
    # At the first use: only the operators bring TensorFlow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("espace_tf.kernels.operators"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
