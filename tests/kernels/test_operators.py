"""The operator against NumPy float64, TensorFlow's dense convolution and finite differences."""

import numpy as np
import pytest
import tensorflow as tf

from espace_tf import kernels
from espace_tf.kernels import index_map
from espace_tf.kernels.index_map import Geometry, IndexMap

NUMPY_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def naive_rows(rows, filter, bias, table, spread=None, activation="none"):
    """The definition, in float64: one tap of one computed position at a time."""
    rows, filter = np.asarray(rows, np.float64), np.asarray(filter, np.float64)
    out = np.zeros((len(rows), len(table), filter.shape[2]))
    for q, reads in enumerate(table):
        for tap, row in enumerate(reads):
            if row >= 0:
                out[:, q] += rows[:, row] @ filter[tap]
    out = NUMPY_ACTIVATIONS[activation](out if bias is None else out + np.asarray(bias, np.float64))
    return out if spread is None else out[:, spread]


def naive_conv(inputs, kernel, geometry):
    """A dense convolution in float64, one output position at a time."""
    inputs, kernel = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    inputs = np.pad(inputs, [(0, 0), *geometry.pads, (0, 0)])
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel_size, geometry.strides, geometry.dilation_rate
    out = np.zeros((len(inputs), *geometry.output_size, kernel.shape[3]))
    for y, x in np.ndindex(*geometry.output_size):
        window = inputs[:, y * sh : y * sh + (kh - 1) * dh + 1 : dh]
        window = window[:, :, x * sw : x * sw + (kw - 1) * dw + 1 : dw]
        out[:, y, x] = np.tensordot(window, kernel, 3)
    return out


def random_geometry(rng):
    while True:
        paddings = ["valid", "same", tuple(map(tuple, rng.integers(0, 3, (2, 2)).tolist()))]
        try:
            return Geometry(
                kernel_size=tuple(rng.integers(1, 5, 2)),
                input_size=tuple(rng.integers(1, 9, 2)),
                strides=tuple(rng.integers(1, 4, 2)),
                dilation_rate=tuple(rng.integers(1, 3, 2)),
                padding=paddings[rng.integers(3)],
            )
        except ValueError:
            continue  # the kernel did not fit


def random_positions(rng, size):
    return np.sort(rng.choice(size, rng.integers(1, size + 1), replace=False)).astype(np.int32)


def random_operands(rng, geometry, groups=1, dtype=np.float64):
    batch, channels, filters = rng.integers(1, 4, 3) * (1, groups, groups)
    inputs = rng.normal(size=(batch, *geometry.input_size, channels)).astype(dtype)
    kernel = rng.normal(size=(*geometry.kernel_size, channels // groups, filters)).astype(dtype)
    return inputs, kernel, rng.normal(size=filters).astype(dtype)


def as_rows(inputs):
    return inputs.reshape(len(inputs), -1, inputs.shape[-1])


def as_taps(kernel):
    return kernel.reshape(-1, *kernel.shape[2:])


def close(actual, expected, message, tolerance=1e-10):
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, tolerance, tolerance, err_msg=message
    )


@pytest.mark.parametrize("seed", range(300))
def test_masked_geometries_against_loops(seed):
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    positions = random_positions(rng, geometry.rows_out)
    inputs, kernel, bias = random_operands(rng, geometry)
    activation = rng.choice(list(NUMPY_ACTIVATIONS))
    table = index_map.conv_table(geometry, positions)
    spread = index_map.nearest_spread(geometry.output_size, positions)
    dense = NUMPY_ACTIVATIONS[activation](as_rows(naive_conv(inputs, kernel, geometry)) + bias)
    computed = dense[:, positions]
    message = f"{seed=} {geometry} {activation}"
    arguments = (as_rows(inputs), as_taps(kernel), bias, table)
    close(kernels.masked_conv2d(*arguments, None, activation=activation), computed, message)
    shown = kernels.masked_conv2d(*arguments, spread, activation=activation)
    close(shown, computed[:, spread], message)


@pytest.mark.parametrize("seed", range(200))
def test_arbitrary_tables_against_loops(seed):
    rng = np.random.default_rng(seed)
    count, computed, taps, shown = rng.integers(1, 9, 4)
    rows = rng.normal(size=(rng.integers(1, 4), count, rng.integers(1, 5)))
    filter = rng.normal(size=(taps, rows.shape[2], rng.integers(1, 5)))
    bias = rng.normal(size=filter.shape[2]) if rng.random() < 0.7 else None
    table = rng.integers(-1, count, (computed, taps)).astype(np.int32)
    spread = rng.integers(0, computed, shown).astype(np.int32) if rng.random() < 0.7 else None
    result = kernels.masked_conv2d(rows, filter, bias, table, spread, activation="relu")
    expected = naive_rows(rows, filter, bias, table, spread, "relu")
    assert result.dtype == tf.float64 and result.shape == expected.shape, f"{seed=}"
    close(result, expected, f"{seed=}")


@pytest.mark.parametrize("seed", range(60))
def test_a_full_table_is_tensorflows_convolution(seed):
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    inputs, kernel, bias = random_operands(rng, geometry, dtype=np.float32)
    explicit = [(0, 0), *geometry.pads, (0, 0)]
    expected = tf.nn.conv2d(
        inputs,
        kernel,
        geometry.strides,
        geometry.padding.upper() if isinstance(geometry.padding, str) else explicit,
        dilations=geometry.dilation_rate,
    )
    expected = as_rows((expected + bias).numpy())
    full = IndexMap.conv(geometry)
    table = kernels.masked_conv2d(as_rows(inputs), as_taps(kernel), bias, full.table, None)
    close(table, expected, f"{seed=} {geometry}", 1e-5)
    dense = kernels.apply_map(inputs, kernel, bias, full)
    close(dense, expected, f"{seed=} {geometry}", 1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_apply_map_takes_maps_rows_and_groups(seed, groups, masked):
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    inputs, kernel, bias = random_operands(rng, geometry, groups)
    positions = random_positions(rng, geometry.rows_out) if masked else None
    wanted = IndexMap.conv(geometry, positions)
    parts = zip(np.split(inputs, groups, -1), np.split(kernel, groups, -1), strict=True)
    expected = np.concatenate([naive_conv(*part, geometry) for part in parts], -1)
    expected = as_rows(np.maximum(expected + bias, 0))
    if wanted.spread is not None:
        expected = expected[:, positions][:, wanted.spread]
    with tf.GradientTape() as tape:
        variables = tf.Variable(inputs), tf.Variable(kernel)
        result = kernels.apply_map(*variables, bias, wanted, activation="relu", groups=groups)
    assert result.shape == (len(inputs), wanted.rows_out, kernel.shape[3])
    close(result, expected, f"{seed=} {geometry}")
    assert all(gradient is not None for gradient in tape.gradient(result, variables))
    flat = kernels.apply_map(
        as_rows(inputs), as_taps(kernel), bias, wanted, activation="relu", groups=groups
    )
    close(flat, expected, f"{seed=} {geometry}")


@pytest.mark.parametrize("seed", range(40))
def test_gradients_are_finite_differences(seed):
    rng = np.random.default_rng(seed)
    count, computed, taps = rng.integers(2, 7, 3)
    table = rng.integers(-1, count, (computed, taps)).astype(np.int32)
    spread = rng.integers(0, computed, 9).astype(np.int32) if seed % 2 else None
    values = [rng.normal(size=s) for s in ((2, count, 3), (taps, 3, 4), (4,))]
    weights = rng.normal(size=(2, computed if spread is None else 9, 4))

    def loss(rows, filter, bias):
        out = naive_rows(rows, filter, bias, table, spread, "tanh")
        return (out * weights).sum()

    with tf.GradientTape() as tape:
        variables = [tf.Variable(value) for value in values]
        out = kernels.masked_conv2d(*variables, table, spread, activation="tanh")
        result = tf.reduce_sum(out * weights)
    for name, value, gradient in zip(
        ("rows", "filter", "bias"), values, tape.gradient(result, variables), strict=True
    ):
        direction = rng.normal(size=value.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = [v + step * direction if v is value else v for v in values]
            ends.append(loss(*moved))
        slope = (ends[0] - ends[1]) / 2e-5
        inner = (tf.convert_to_tensor(gradient).numpy() * direction).sum()
        close(inner, slope, f"{seed=} {name}", 1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_compiled_step_gives_the_eager_gradients(seed, jit_compile):
    rng = np.random.default_rng(seed)
    geometry = Geometry(kernel_size=3, input_size=(6, 5), padding="same")
    wanted = IndexMap.conv(geometry, random_positions(rng, 30))
    inputs, kernel, bias = (tf.constant(v) for v in random_operands(rng, geometry))

    def step(inputs, kernel, bias):
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel, bias])
            out = kernels.apply_map(inputs, kernel, bias, wanted, activation="silu")
            loss = tf.reduce_sum(out**2)
        return out, *tape.gradient(loss, [inputs, kernel, bias])

    compiled = tf.function(step, jit_compile=jit_compile)
    for one, other in zip(compiled(inputs, kernel, bias), step(inputs, kernel, bias), strict=True):
        close(one, tf.convert_to_tensor(other).numpy(), f"{seed=}")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float16", 1e-2), ("bfloat16", 8e-2), ("float32", 1e-5), ("float64", 1e-12)],
)
def test_every_float_type(dtype, tolerance):
    rng = np.random.default_rng(0)
    geometry = Geometry(kernel_size=3, input_size=6, padding="same")
    wanted = IndexMap.conv(geometry, range(0, 36, 2))
    operands = [tf.cast(value, dtype) for value in random_operands(rng, geometry)]
    rows, filter, bias = (tf.cast(value, tf.float64).numpy() for value in operands)
    with tf.GradientTape() as tape:
        tape.watch(operands)
        result = kernels.masked_conv2d(
            tf.reshape(operands[0], as_rows(rows).shape),
            tf.reshape(operands[1], as_taps(filter).shape),
            operands[2],
            wanted.table,
            wanted.spread,
        )
    assert result.dtype == dtype
    assert [gradient.dtype for gradient in tape.gradient(result, operands)] == [dtype] * 3
    expected = naive_rows(as_rows(rows), as_taps(filter), bias, wanted.table, wanted.spread)
    close(tf.cast(result, tf.float64), expected, dtype, tolerance)


@pytest.mark.parametrize("seed", range(40))
def test_chains_of_read_rows_equal_the_whole_layers(seed):
    """Two masked layers with only the rows in between that the second reads."""
    rng = np.random.default_rng(seed)
    first = random_geometry(rng)
    second = Geometry(kernel_size=2, input_size=first.output_size, padding="same")
    kept = random_positions(rng, first.rows_out)
    last = random_positions(rng, second.rows_out)
    inputs, kernel, bias = random_operands(rng, first)
    kernel2 = rng.normal(size=(2, 2, kernel.shape[3], 2))
    whole = kernels.apply_map(inputs, kernel, bias, IndexMap.conv(first, kept), activation="relu")
    expected = kernels.apply_map(whole, kernel2, None, IndexMap.conv(second, last))

    spread = index_map.nearest_spread(first.output_size, kept)
    table = index_map.compose(index_map.conv_table(second, last), spread)
    rows = index_map.rows_read(table)
    hidden = IndexMap.conv(first, kept[rows], spread=False)
    few = kernels.apply_map(inputs, kernel, bias, hidden, activation="relu")
    assert few.shape[1] == len(rows)
    reads = IndexMap(
        index_map.reindex(table, rows),
        index_map.nearest_spread(second.output_size, last),
        rows_in=len(rows),
    )
    result = kernels.apply_map(few, kernel2, None, reads)
    close(result, expected.numpy(), f"{seed=} {first}")


@pytest.mark.parametrize("known", ["nothing", "ranks", "channels"])
def test_unknown_shapes_and_symbolic_indices(known):
    rng = np.random.default_rng(0)
    shapes = {
        "nothing": [None] * 5,
        "ranks": [[None] * 3, [None] * 3, [None], [None] * 2, [None]],
        "channels": [[None, None, 3], [4, 3, 5], [5], [None, 4], [None]],
    }[known]
    types = [tf.float64] * 3 + [tf.int32] * 2
    compiled = tf.function(
        kernels.masked_conv2d,
        input_signature=[tf.TensorSpec(s, t) for s, t in zip(shapes, types, strict=True)],
    )
    for batch, count, computed in ((2, 7, 4), (1, 3, 9), (0, 2, 2)):
        rows = rng.normal(size=(batch, count, 3))
        filter, bias = rng.normal(size=(4, 3, 5)), rng.normal(size=5)
        table = rng.integers(-1, count, (computed, 4)).astype(np.int32)
        spread = rng.integers(0, computed, 6).astype(np.int32)
        result = compiled(rows, filter, bias, table, spread)
        close(result, naive_rows(rows, filter, bias, table, spread), f"{known} {batch=}")


@pytest.mark.parametrize("padding", ["valid", "same", ((0, 0), (1, 0))])
@pytest.mark.parametrize(
    "width, taps, stride", [(3, 3, 2), (4, 3, 3), (8, 5, 4), (5, 1, 6), (2, 2, 3), (2, 3, 2)]
)
@pytest.mark.parametrize("along", [0, 1])
def test_conv2d_of_one_channel_and_one_column_or_row(along, width, taps, stride, padding):
    rng = np.random.default_rng(width + taps)

    if padding == "valid" and width < taps:
        padding = ((0, 0), (1, 1))

    def turned(this, other):
        return (other, this) if along == 0 else (this, other)

    padding = turned(*padding) if isinstance(padding, tuple) else padding
    geometry = Geometry(
        kernel_size=turned(1, taps),
        input_size=turned(3, width),
        strides=turned(1, stride),
        padding=padding,
    )
    inputs = rng.normal(size=(3, *turned(3, width), 1)).astype(np.float32)
    kernel = rng.normal(size=(*turned(1, taps), 1, 5)).astype(np.float32)
    found = kernels.conv2d(inputs, kernel, None, strides=geometry.strides, padding=padding)
    assert np.abs(found - naive_conv(inputs, kernel, geometry)).max() < 1e-5


def test_conv2d_takes_unknown_sizes():
    rng = np.random.default_rng(0)
    geometry = Geometry(kernel_size=(3, 2), input_size=(7, 9), strides=2, padding=((1, 0), (2, 1)))
    inputs, kernel, bias = random_operands(rng, geometry, groups=2)
    compiled = tf.function(
        lambda x: kernels.conv2d(x, kernel, bias, strides=2, padding=geometry.padding, groups=2),
        input_signature=[tf.TensorSpec([None, None, None, inputs.shape[-1]], tf.float64)],
    )
    parts = zip(np.split(inputs, 2, -1), np.split(kernel, 2, -1), strict=True)
    expected = np.concatenate([naive_conv(*part, geometry) for part in parts], -1) + bias
    close(compiled(inputs), expected, "conv2d")


@pytest.mark.parametrize(
    ("table", "spread", "ops"),
    [
        (np.arange(9)[:, None], None, []),
        (np.arange(9)[:, None], np.arange(9), []),
        (np.arange(9)[::-1, None], None, ["GatherV2"]),
        (np.arange(8)[:, None], np.arange(8), ["GatherV2"]),
        (np.arange(9)[:, None], np.zeros(4), ["GatherV2"]),
        (np.array([[0], [-1]]), None, ["GatherV2", "Pad"]),
    ],
)
def test_the_graph_holds_no_needless_copy(table, spread, ops):
    spread = None if spread is None else spread.astype(np.int32)
    wanted = IndexMap(table.astype(np.int32), spread, rows_in=9)
    function = tf.function(lambda x: kernels.apply_map(x, tf.ones([1, 2, 3]), None, wanted))
    with kernels.plain():
        graph = function.get_concrete_function(tf.TensorSpec([None, 9, 2])).graph
    copies = {"GatherV2", "Pad", "PadV2"}
    assert sorted(op.type for op in graph.get_operations() if op.type in copies) == ops


def test_tflite_builtins_run_any_batch():
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    rng = np.random.default_rng(0)
    geometry = Geometry(kernel_size=3, input_size=(8, 7), padding="same")
    wanted = IndexMap.conv(geometry, random_positions(rng, 56))
    inputs = rng.normal(size=(3, 8, 7, 4)).astype(np.float32)
    kernel, bias = (tf.constant(rng.normal(size=s), tf.float32) for s in ((3, 3, 4, 5), (5,)))
    function = tf.function(
        lambda x: kernels.apply_map(x, kernel, bias, wanted, activation="relu"),
        input_signature=[tf.TensorSpec([None, 8, 7, 4])],
    )
    with kernels.plain():
        concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    interpreter = Interpreter(
        model_content=converter.convert(),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert list(entry["shape_signature"]) == [-1, 8, 7, 4]
    interpreter.resize_tensor_input(entry["index"], inputs.shape)
    interpreter.allocate_tensors()
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    assert sorted(n for n in names if n != "RESHAPE") == [
        *("FULLY_CONNECTED", "GATHER", "GATHER", "PAD"),
    ]
    interpreter.set_tensor(entry["index"], inputs)
    interpreter.invoke()
    expected = naive_rows(
        as_rows(inputs), as_taps(kernel.numpy()), bias, wanted.table, wanted.spread, "relu"
    )
    close(interpreter.get_tensor(result["index"]), expected, "tflite", 1e-5)


def test_the_package_shows_the_operators():
    assert {"apply_map", "backend", "conv2d", "masked_conv2d"} <= set(dir(kernels))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kernels.nothing
