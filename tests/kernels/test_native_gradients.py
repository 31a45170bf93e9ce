"""Gradients of gradients, the same natively and on the reference: against finite differences of the
reference's gradients in float64.
"""

import numpy as np
import pytest
import tensorflow as tf

from espace_tf import kernels
from espace_tf.kernels import fused, loader, reference
from espace_tf.kernels.program import CONVOLVE, ProgramBuilder

NAMES = ("masked_conv2d", "masked_depthwise_conv2d", "max_pool", "avg_pool")


def random_call(name: str, rng) -> tuple[list[np.ndarray], tuple, dict]:
    """(operands in float64, (table, spread), options) of one operator."""
    shapes = [
        (2, 9, 5),
        *([(4, 5, 3), (15 if "depthwise" in name else 3,)] if "conv" in name else []),
    ]
    operands = [rng.normal(size=shape) for shape in shapes]
    table, spread = rng.integers(-1, 9, (7, 4)), rng.integers(0, 7, 11)
    options = {"activation": rng.choice(["none", "relu", "tanh"]).item()} if "conv" in name else {}
    return operands, (table.astype(np.int32), spread.astype(np.int32)), options


def gradients(function, operands: list[tf.Tensor]) -> list[tf.Tensor]:
    """Of a scalar that depends on every output in a way of its own, and not linearly."""
    with tf.GradientTape() as tape:
        tape.watch(operands)
        out = tf.reshape(function(*operands), [-1])
        loss = tf.reduce_sum(
            out**2
            * tf.cos(
                tf.range(tf.size(out), dtype=tf.float64 if out.dtype == tf.float64 else tf.float32)
            )
        )
    return tape.gradient(loss, operands)


def along(function, operands: list[tf.Tensor], directions: list[tf.Tensor]) -> list[tf.Tensor]:
    """The gradients' change in these directions, by a tape around the tape."""
    with tf.GradientTape() as tape:
        tape.watch(operands)
        found = gradients(function, operands)
        loss = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(found, directions, strict=True)])
    return tape.gradient(loss, operands, unconnected_gradients="zero")


def check(function, exact, operands: list[np.ndarray], message: str, rng) -> None:
    directions = [rng.normal(size=operand.shape) for operand in operands]
    ends = []
    for step in (1e-6, -1e-6):
        moved = [a + step * b for a, b in zip(operands, directions, strict=True)]
        ends.append(gradients(exact, [tf.constant(value) for value in moved]))
    expected = [(a - b).numpy() / 2e-6 for a, b in zip(*ends, strict=True)]
    singles = [
        [tf.constant(value, tf.float32) for value in each] for each in (operands, directions)
    ]
    for kind, run in (("eager", along), ("graph", tf.function(along))):
        for one, other in zip(run(function, *singles), expected, strict=True):
            scale = max(np.abs(other).max(), 1)
            assert np.abs(one - other).max() < 1e-4 * scale, f"{message} {kind}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_gradients_are_finite_differences(name, seed):
    rng = np.random.default_rng(seed)
    operands, indices, options = random_call(name, rng)

    def of(module):
        return lambda *values: getattr(module, name)(*values, *indices, **options)

    check(of(kernels), of(reference), operands, f"{name} {seed=} {options}", rng)


def test_those_of_a_third_order_exist():
    rows, filter = tf.ones([1, 2, 1]), tf.ones([1, 1, 1])
    table = np.array([[0], [1]], np.int32)
    value = [filter]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(filter)
        value = kernels.masked_conv2d(rows, filter, None, table, None) ** 3
        for _ in range(2):
            value = tape.gradient(value, filter)
    assert tape.gradient(value, filter).numpy().item() == 12  # 2 * 3 * 2 * 1


def test_a_fused_program_has_them_too():
    operations = loader.operations_now()
    if operations is None:
        pytest.skip(f"backend: {kernels.backend()}")
    rng = np.random.default_rng(0)
    table = rng.integers(-1, 6, (5, 3)).astype(np.int32)
    builder = ProgramBuilder()
    source = builder.input(6, 2)
    weight, bias = builder.weight(3 * 2 * 4), builder.weight(4)
    out = builder.step(
        CONVOLVE, [source], 5, 4, filter=weight, bias=bias, table=table, activation="relu"
    )
    builder.output(out)
    program = fused.Program.read(builder.words())
    values = [rng.normal(size=shape) for shape in ((3, 2, 4), (4,))]

    def plain(dtype):
        weights = [tf.constant(value, dtype) for value in values]
        return lambda rows: reference.masked_conv2d(rows, *weights, table, None, activation="relu")

    call = fused.FusedGraphCall(
        program,
        lambda: [tf.constant(value, tf.float32) for value in values],
        lambda rows: [plain(tf.float32)(rows)],
    )
    exact = plain(tf.float64)
    check(
        lambda rows: call(operations, [rows])[0], exact, [rng.normal(size=(2, 6, 2))], "fused", rng
    )
