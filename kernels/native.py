"""The operators through the native operations: the arguments and results of `reference`, for rows
of TYPES.

What the operations do not know is composed: activations of other names follow the operation, groups
run one by one.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import tensorflow as tf

from espace_tf.kernels import reference

# Fused into the operations; every other activation is applied to their result.
FUSED = ("none", "relu", "relu6")
TYPES = (tf.float32, tf.float16, tf.bfloat16)


def convolve(
    operations: ModuleType,
    name: str,
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
    groups: int = 1,
) -> tf.Tensor:
    """A convolution of `reference`, by its name, on the operations that `loader` loaded.

    Raises:
        tf.errors.InvalidArgumentError: sizes or indices that do not fit together.
    """
    if groups == 1:
        return _convolve(operations, name, (rows, filter, bias), table, spread, activation)
    parts = zip(
        tf.split(rows, groups, -1),
        tf.split(filter, groups, -1),
        [None] * groups if bias is None else tf.split(bias, groups),
        strict=True,
    )
    shown = [_convolve(operations, name, part, table, spread, activation) for part in parts]
    return tf.concat(shown, -1)


def _convolve(operations, name, operands, table, spread, activation) -> tf.Tensor:
    run, run_gradient = _pair(operations, f"espace_{name}")
    fused = activation if activation in FUSED else "none"
    indices, options = _indices(table, spread)
    options["activation"] = fused

    def forward(rows, filter, *bias):
        added = bias[0] if bias else tf.zeros([0], rows.dtype)
        return run(rows, filter, *indices, added, use_bias=bool(bias), **options)

    def backward(out, upstream, rows, filter, *bias):
        found = run_gradient(rows, filter, *indices, out, upstream, **options)
        return tuple(found)[: 2 + len(bias)]

    def plain(rows, filter, bias=None):
        operator = getattr(reference, name)
        return operator(rows, filter, bias, table, spread, activation=fused)

    given = [operand for operand in operands if operand is not None]
    shown = _differentiable(forward, backward, plain, given)
    return shown if activation in FUSED else reference.ACTIVATIONS[activation](shown)


def pool(
    operations: ModuleType,
    name: str,
    rows: tf.Tensor,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
) -> tf.Tensor:
    """As `convolve`: "max_pool" or "avg_pool"."""
    run, run_gradient = _pair(operations, "espace_pool")
    indices, options = _indices(table, spread)
    options["kind"] = name.removesuffix("_pool")

    def forward(rows):
        return run(rows, *indices, **options)

    def backward(out, upstream, rows):
        return (run_gradient(rows, *indices, upstream, **options),)

    def plain(rows):
        return getattr(reference, name)(rows, table, spread)

    return _differentiable(forward, backward, plain, [rows])


def _pair(operations: ModuleType, name: str) -> tuple[Callable, Callable]:
    return getattr(operations, name), getattr(operations, f"{name}_grad")


def _indices(table, spread) -> tuple[tuple[tf.Tensor, tf.Tensor], dict]:
    """Table and spread as tensors (an empty spread where there is none), and what says so."""
    shown = [] if spread is None else spread
    indices = tf.convert_to_tensor(table, tf.int32), tf.convert_to_tensor(shown, tf.int32)
    return indices, {"use_spread": spread is not None}


def _differentiable(
    forward: Callable[..., tf.Tensor],
    backward: Callable[..., Sequence[tf.Tensor]],
    plain: Callable[..., tf.Tensor],
    operands: Sequence[tf.Tensor],
) -> tf.Tensor:
    """The result of a native operation, differentiable any number of times.

    By custom gradients, which survive a SavedModel.

    Args:
        forward: the operation, called with the operands.
        backward: called with its result, the gradient of that and the operands, for theirs.
        plain: as forward, in TensorFlow's operations: the gradients of gradients are its.
        operands: what the gradients are of.
    """

    @tf.custom_gradient
    def run(*operands):
        out = forward(*operands)

        @tf.custom_gradient
        def gradient(*sources):
            def second(*above):
                with tf.GradientTape() as outer:
                    outer.watch(sources)
                    with tf.GradientTape() as inner:
                        inner.watch(sources[1:])
                        shown = plain(*sources[1:])
                    found = inner.gradient(shown, sources[1:], sources[0], **ZERO)
                return outer.gradient(found, sources, above, **ZERO)

            return backward(out, *sources), second

        return out, lambda upstream: gradient(upstream, *operands)

    return run(*(tf.convert_to_tensor(operand) for operand in operands))


ZERO = {"unconnected_gradients": tf.UnconnectedGradients.ZERO}
