"""A whole program (see `program`) as one native operation, for calls at inference."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf

from espace_tf.kernels.masked_conv2d import cpu_operations_now


def fused_operations() -> ModuleType | None:
    """The native operations, if the call that is being made now can run programs with them."""
    operations = cpu_operations_now()
    return operations if hasattr(operations, "espace_fused_graph") else None


@tf.autograph.experimental.do_not_convert
def fused_graph(
    operations: ModuleType,
    program: Any,
    outputs: int,
    inputs: Sequence[tf.Tensor],
    weights: Callable[[], Sequence[tf.Tensor]],
    plain: Callable[..., Sequence[tf.Tensor]],
) -> list[tf.Tensor]:
    """Runs a program; differentiable in the inputs and in all variables that the weights read.

    Args:
        operations: what `fused_operations` returned.
        program: the words, as `tf.make_tensor_proto` makes them.
        outputs: how many the program has.
        inputs: float32 tensors [B, ..., C].
        weights: called for the program's weights, in their order; reads variables.
        plain: the same function of the inputs in differentiable operations and of the same
            variables; runs only where a gradient is asked for.

    Returns:
        The outputs, shaped as those of `plain` once flattened: [B, rows, channels] each.

    Raises:
        tf.errors.InvalidArgumentError: inputs or weights that the program does not fit.
    """

    @tf.custom_gradient
    def run(*inputs):
        found, _ = operations.espace_fused_graph(
            inputs=list(inputs), weights=list(weights()), program=program, outputs=outputs
        )

        def gradient(*upstream, variables=None):
            sources = [*inputs, *(variables or ())]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                results = [
                    tf.reshape(result, tf.shape(given))
                    for result, given in zip(plain(*inputs), upstream, strict=True)
                ]
            slopes = tape.gradient(results, sources, list(upstream), tf.UnconnectedGradients.ZERO)
            count = len(inputs)
            return slopes[:count] if variables is None else (slopes[:count], slopes[count:])

        return tuple(found), gradient

    return list(run(*inputs))
