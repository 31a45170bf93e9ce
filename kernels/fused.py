"""A whole program (see `program`) as one native operation, for calls at inference."""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import tensorflow as tf

from espace_tf.kernels.program_reader import Program


class FusedGraphCall:
    """Calls of the native operation with one program.

    Args:
        program: what it runs.
        weights: called for the program's weights, in their order; reads variables.
        plain: the same function of the inputs in differentiable operations and of the same
            variables; runs only where a gradient is asked for.
    """

    def __init__(
        self,
        program: Program,
        weights: Callable[[], Sequence[tf.Tensor]],
        plain: Callable[..., Sequence[tf.Tensor]],
    ):
        self._outputs, self._weights, self._plain = len(program.outputs), weights, plain
        self._words = tf.make_tensor_proto(program.words)
        # Eager operations know no attribute that is a tensor: there a function makes the call.
        # Of a partial, because TensorFlow counts the tracings of all functions of one piece of
        # code together, and would warn of a model with five of these.
        run = functools.partial(self._run)
        self._eager = tf.function(run, autograph=False, reduce_retracing=True)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, operations: ModuleType, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Runs the program; differentiable in the inputs and in what the weights read.

        Args:
            operations: what `loader.operations_now` returned.
            inputs: float32 tensors [B, ..., C].

        Returns:
            The outputs, [B, rows, channels] each.

        Raises:
            tf.errors.InvalidArgumentError: inputs or weights that the program does not fit.
        """
        inputs = list(inputs)
        if not tf.executing_eagerly():
            return list(self._run(operations, inputs))
        if tf.config.functions_run_eagerly():  # A concrete function is one all the same.
            return list(self._eager.get_concrete_function(operations, inputs)(*inputs))
        return list(self._eager(operations, inputs))

    def _run(self, operations, inputs):
        @tf.custom_gradient
        def differentiable(*inputs):
            def gradient(*upstream, variables=None):
                return self._gradient(inputs, upstream, variables)

            outputs, _ = operations.espace_fused_graph(
                inputs=list(inputs),
                weights=list(self._weights()),
                program=self._words,
                outputs=self._outputs,
            )
            return tuple(outputs), gradient

        return differentiable(*inputs)

    def _gradient(self, inputs, upstream, variables):
        sources = [*inputs, *(variables or ())]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs = [
                tf.reshape(output, tf.shape(given))
                for output, given in zip(self._plain(*inputs), upstream, strict=True)
            ]
        found = tape.gradient(
            outputs,
            sources,
            list(upstream),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        count = len(inputs)
        return found[:count] if variables is None else (found[:count], found[count:])
