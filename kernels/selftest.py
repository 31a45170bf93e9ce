"""A few calls of freshly loaded operations, compared with what must come out.

A binary that compiles and loads may still be wrong on the machine at hand: a processor or a GPU
that nobody tried it on. Then an error in words and the reference are better than wrong numbers.
"""

import functools
from types import ModuleType

import numpy as np
import tensorflow as tf

from espace_tf.kernels import native, reference
from espace_tf.kernels.program import SUM, ProgramBuilder

# Of the largest value; float32 may be TF32 on GPUs, which has 10 bits.
TOLERANCE = {tf.float32: 5e-3, tf.float16: 1e-2, tf.bfloat16: 6e-2}
OPERATIONS = ("masked_depthwise_conv2d", "pool", "fused_graph")
NAMES = ("out", "gradient of rows", "gradient of filter", "gradient of bias")
# (rows, channels, taps, computed, shown, filters): whole vectors and tiles, and neither.
SIZES = ((70, 40, 3, 140, 300, 136), (9, 5, 4, 7, 0, 3))


def check_small(operations: ModuleType) -> None:
    """Raises unless one tiny call gives exactly what it must, and all other operations exist.

    Args:
        operations: what `tf.load_op_library` returned.

    Raises:
        AttributeError, TypeError: the binary is older than this package: something is not there.
        ValueError: wrong numbers.
    """
    for name in OPERATIONS:
        getattr(operations, f"espace_{name}")
    shown = operations.espace_masked_conv2d(
        tf.constant([[[1.0, 2.0], [3.0, 4.0]]]),
        tf.constant([[[1.0], [1.0]], [[10.0], [10.0]]]),
        tf.constant([[0, 1], [-1, 0]]),
        tf.constant([1, 0, 0]),
        tf.constant([-31.0]),
        activation="relu",
        use_spread=True,
        use_bias=True,
    ).numpy()
    if not np.array_equal(shown.ravel(), [0.0, 42.0, 42.0]):
        raise ValueError(f"its self-test gave {shown.ravel().tolist()}, not [0, 42, 42]")
    _check_program(operations)


def _check_program(operations: ModuleType) -> None:
    """Raises unless the binary reads programs as this package writes them."""
    builder = ProgramBuilder()
    value = builder.input(2, 3)
    builder.output(builder.step(SUM, [value, value], 2, 3, activation="relu"))
    program = tf.make_tensor_proto(builder.words())

    def run() -> tf.Tensor:  # eager operations know no attribute that is a tensor
        rows = tf.constant([[[-1.0, 0.0, 1.0], [2.0, 3.0, 4.0]]])
        attributes = {"program": program, "outputs": 1, "profile": True, "threads": 1}
        return operations.espace_fused_graph(inputs=[rows], weights=[], **attributes).out[0]

    shown = tf.function(run, autograph=False).get_concrete_function()().numpy()
    if not np.array_equal(shown.ravel(), [0.0, 0.0, 2.0, 4.0, 6.0, 8.0]):
        raise ValueError(f"its program of a self-test gave {shown.ravel().tolist()}")


def check_all(operations: ModuleType) -> None:
    """Raises ValueError unless every type's forward pass and gradients agree with the reference.

    Args:
        operations: what `tf.load_op_library` returned.
    """
    for dtype, tolerance in TOLERANCE.items():
        for sizes in SIZES:
            found, expected = _results(operations, dtype, *sizes)
            for name, one, other in zip(NAMES, found, expected, strict=True):
                error = np.abs(one - other).max() / max(np.abs(other).max(), 1e-3)
                if not error <= tolerance:  # also where it is not a number
                    raise ValueError(
                        f"in {dtype.name} its {name} is off by {error:.2g} of the largest value, "
                        f"more than {tolerance}, at sizes {sizes}"
                    )


def _results(
    operations: ModuleType,
    dtype: tf.DType,
    rows: int,
    channels: int,
    taps: int,
    computed: int,
    shown: int,
    filters: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """[out, gradients of rows, filter and bias] of the operations and of the reference."""
    rng = np.random.default_rng(0)
    shapes = [(2, rows, channels), (taps, channels, filters), (filters,)]
    operands = [tf.cast(rng.normal(size=shape), dtype) for shape in shapes]
    table = rng.integers(-1, rows, (computed, taps)).astype(np.int32)
    spread = rng.integers(0, computed, shown).astype(np.int32) if shown else None

    def run(operator, values: list[tf.Tensor]) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            out = operator(*values, table, spread)
            loss = tf.reduce_sum(out * tf.cast(tf.cos(tf.range(1.0, filters + 1)), out.dtype))
        return [tf.cast(v, tf.float64).numpy() for v in (out, *tape.gradient(loss, values))]

    with tf.device("CPU"):
        expected = run(reference.masked_conv2d, [tf.cast(v, tf.float64) for v in operands])
    compiled = functools.partial(native.convolve, operations, "masked_conv2d")
    return run(compiled, operands), expected
