"""Gradients that would end the process, computed in another way while a model is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import tensorflow as tf

from espace_tf.kernels.reference import FILLED
from espace_tf.network import graph


@contextmanager
def safe_steps(model: Any) -> Iterator[None]:
    """For its time the model's strided convolutions of one tap read what they need in steps of one.

    Their results are the same, and so are their gradients where TensorFlow 2.21 computes them; with
    fewer than FILLED channels its oneDNN ends the process on AVX-512, see `kernels.reference`.

    Args:
        model: of Keras 3 or tf_keras; its layers are as before afterwards.
    """
    library = graph.library(model)
    changed = [each for each in graph.layers(model).values() if _ends_the_process(library, each)]
    for layer in changed:
        layer.convolution_op = _Sampled(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.convolution_op


def _ends_the_process(library: ModuleType, layer: Any) -> bool:
    return (
        type(layer) in (library.layers.Conv1D, library.layers.Conv2D)
        and set(layer.kernel_size) == {1}
        and max(layer.strides) > 1
        and layer.groups == 1
        and layer.built
        and layer.kernel.shape[-2] < FILLED
    )


class _Sampled:
    """The hook that Keras has in convolutions, of one layer."""

    def __init__(self, layer: Any):
        steps = [slice(None, None, stride) for stride in layer.strides]
        last = layer.data_format == "channels_last"
        self._index = (slice(None), *steps) if last else (slice(None), slice(None), *steps)
        formats = ("NWC", "NHWC") if last else ("NCW", "NCHW")
        self._format = formats[len(steps) - 1]

    def __call__(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The convolution without its bias."""
        kernel = tf.convert_to_tensor(kernel)
        shown = tf.convert_to_tensor(inputs)[self._index]
        return tf.nn.convolution(shown, kernel, 1, "VALID", self._format)
