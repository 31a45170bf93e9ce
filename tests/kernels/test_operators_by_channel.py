"""Depthwise convolution and pooling on every backend: loops in float64, stock TensorFlow, finite
differences, files for TensorFlow Lite, Keras models in threads."""

import functools
import threading

import numpy as np
import pytest
import tensorflow as tf

from espace_tf import kernels
from espace_tf.kernels import reference
from espace_tf.kernels.index_map import Geometry, IndexMap, conv_table

NAMES = ("masked_depthwise_conv2d", "max_pool", "avg_pool")
TOLERANCE = {tf.float32: 1e-5, tf.float64: 1e-12, tf.float16: 5e-3, tf.bfloat16: 5e-2}
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "tanh": np.tanh,
}
BACKENDS = ["reference", "native"]


@pytest.fixture(params=BACKENDS)
def operators(request) -> dict:
    """The three operators of one backend by name."""
    if request.param == "reference":
        return {name: getattr(reference, name) for name in NAMES}
    if kernels.backend().operations is None:
        pytest.skip(f"backend: {kernels.backend()}")
    return {name: getattr(kernels, name) for name in NAMES}


def naive_depthwise(rows, filter, bias, table, spread=None, activation="none"):
    """The definition in float64, one tap of one computed position at a time."""
    rows, filter = np.asarray(rows, np.float64), np.asarray(filter, np.float64)
    out = np.zeros((len(rows), len(table), *filter.shape[1:]))
    for q, reads in enumerate(table):
        for tap, row in enumerate(reads):
            if row >= 0:
                out[:, q] += rows[:, row, :, None] * filter[tap]
    out = out.reshape(*out.shape[:2], -1)
    out = ACTIVATIONS[activation](out if bias is None else out + np.asarray(bias, np.float64))
    return out if spread is None else out[:, spread]


def naive_pool(reduce, rows, table, spread=None):
    """The definition in float64; reduce is np.max or np.mean."""
    rows = np.asarray(rows, np.float64)
    out = np.zeros((len(rows), len(table), rows.shape[2]))
    for q, reads in enumerate(table):
        if (reads >= 0).any():
            out[:, q] = reduce(rows[:, reads[reads >= 0]], axis=1)
    return out if spread is None else out[:, spread]


NAIVE = {
    "masked_depthwise_conv2d": naive_depthwise,
    "max_pool": functools.partial(naive_pool, np.max),
    "avg_pool": functools.partial(naive_pool, np.mean),
}


def random_call(name: str, seed: int, dtype: tf.DType = tf.float32) -> tuple[list, tuple]:
    """(differentiable operands, (table, spread)) of one operator; some windows are all padding."""
    rng = np.random.default_rng(seed)
    batch, rows, channels, taps, computed = (int(rng.integers(1, n)) for n in (4, 30, 40, 8, 40))
    multiplier = int(rng.integers(1, 4))
    shapes = [(batch, rows, channels)]
    if name == "masked_depthwise_conv2d":
        shapes += [(taps, channels, multiplier), (channels * multiplier,)]
    operands = [tf.cast(rng.normal(size=shape), dtype) for shape in shapes]
    if len(operands) == 3 and rng.random() < 0.3:
        operands[2] = None
    table = rng.integers(-1, rows, (computed, taps)).astype(np.int32)
    table[rng.random(computed) < 0.1] = -1
    if rng.random() < 0.3:
        table = np.maximum(table, 0)  # nothing reads padding
    spread = rng.integers(0, computed, rng.integers(1, 50)).astype(np.int32)
    return operands, (table, spread if rng.random() < 0.6 else None)


def close(found, expected, dtype, message):
    found, expected = (np.asarray(tf.cast(value, tf.float64)) for value in (found, expected))
    assert found.shape == expected.shape, message
    scale = max(np.abs(expected).max(initial=0), 1)
    assert np.abs(found - expected).max(initial=0) <= TOLERANCE[dtype] * scale, message


def weighted(shown) -> tf.Tensor:
    """A scalar that depends on every element in a way of its own."""
    shown = tf.cast(shown, tf.float64)
    weights = tf.cos(tf.range(tf.size(shown), dtype=tf.float64))
    return tf.reduce_sum(tf.reshape(shown, [-1]) * weights)


def gradients(operator, operands, indices, **options):
    watched = [value for value in operands if value is not None]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        shown = operator(*operands, *indices, **options)
        loss = weighted(shown)
    return [shown, *tape.gradient(loss, watched)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", NAMES)
def test_against_loops(operators, name, seed, dtype):
    operands, indices = random_call(name, seed, dtype)
    options = {"activation": list(ACTIVATIONS)[seed % 4]} if "conv" in name else {}
    found = operators[name](*operands, *indices, **options)
    assert found.dtype == dtype
    doubles = [None if value is None else tf.cast(value, tf.float64) for value in operands]
    close(found, NAIVE[name](*doubles, *indices, **options), dtype, f"{seed=} {options}")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", NAMES)
def test_backends_agree_on_gradients(operators, name, seed):
    operands, indices = random_call(name, seed)
    options = {"activation": list(ACTIVATIONS)[seed % 4]} if "conv" in name else {}
    doubles = [None if value is None else tf.cast(value, tf.float64) for value in operands]
    plain = getattr(reference, name)
    expected = gradients(plain, doubles, indices, **options)
    for one, other in zip(
        gradients(operators[name], operands, indices, **options), expected, strict=True
    ):
        close(one, other, tf.float32, f"{seed=} {options}")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences(name, seed):
    operands, indices = random_call(name, seed, tf.float64)
    operands = [value for value in operands if value is not None]
    rest = [None] * ("conv" in name and 3 - len(operands))
    rng = np.random.default_rng(seed)
    operator = getattr(kernels, name)
    _, *found = gradients(operator, [*operands, *rest], indices)
    for index, gradient in enumerate(found):
        direction, step = rng.normal(size=gradient.shape), 1e-6
        moved = []
        for sign in (-1, 1):
            changed = list(operands)
            changed[index] = changed[index] + sign * step * direction
            moved.append(float(weighted(operator(*changed, *rest, *indices))))
        expected = (moved[1] - moved[0]) / (2 * step)
        size = max(float(np.linalg.norm(gradient)), 1)
        assert abs(np.vdot(gradient, direction) - expected) < 1e-6 * size, f"{seed=} {index=}"


def test_the_first_of_equal_values_takes_the_gradient(operators):
    rows = tf.constant([[[1.0], [3.0], [3.0], [3.0]]])
    table = np.array([[-1, 0, 2, 1], [0, 0, -1, -1], [3, 3, 1, 0]], np.int32)
    with tf.GradientTape() as tape:
        tape.watch(rows)
        shown = operators["max_pool"](rows, table) * [[1.0], [10.0], [100.0]]
    assert tape.gradient(shown, rows).numpy().ravel().tolist() == [10.0, 0.0, 1.0, 100.0]


def window(rng) -> Geometry:
    return Geometry(
        kernel_size=tuple(rng.integers(1, 4, 2)),
        input_size=tuple(rng.integers(3, 10, 2)),
        strides=tuple(rng.integers(1, 4, 2)),
        padding=rng.choice(["valid", "same"]).item(),
    )


@pytest.mark.parametrize("seed", range(30))
def test_full_tables_are_stock_pooling(operators, seed):
    rng = np.random.default_rng(seed)
    geometry = window(rng)
    inputs = tf.constant(rng.normal(size=(2, *geometry.input_size, 7)), tf.float32)
    table = conv_table(geometry)
    for name, stock in (("max_pool", tf.nn.max_pool2d), ("avg_pool", tf.nn.avg_pool2d)):
        results = []
        for operator in (
            lambda x, name=name: operators[name](tf.reshape(x, [2, -1, 7]), table),
            lambda x, stock=stock: tf.reshape(
                stock(x, geometry.kernel_size, geometry.strides, geometry.padding.upper()),
                [2, -1, 7],
            ),
        ):
            results.append(gradients(operator, [inputs], ()))
        for one, other in zip(*results, strict=True):
            close(one, other, tf.float32, f"{seed=} {name} {geometry}")


@pytest.mark.parametrize("seed", range(30))
def test_full_tables_are_the_stock_depthwise_convolution(operators, seed):
    rng = np.random.default_rng(seed)
    geometry = window(rng)
    stride, multiplier = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    geometry = Geometry(
        kernel_size=geometry.kernel_size,
        input_size=geometry.input_size,
        strides=stride,
        padding=geometry.padding,
    )
    inputs, kernel = (
        tf.constant(rng.normal(size=shape), tf.float32)
        for shape in ((2, *geometry.input_size, 5), (*geometry.kernel_size, 5, multiplier))
    )
    shown = operators["masked_depthwise_conv2d"](
        tf.reshape(inputs, [2, -1, 5]),
        tf.reshape(kernel, [-1, 5, multiplier]),
        None,
        conv_table(geometry),
        None,
    )
    expected = tf.nn.depthwise_conv2d(
        inputs, kernel, [1, stride, stride, 1], geometry.padding.upper()
    )
    close(tf.reshape(shown, expected.shape), expected, tf.float32, f"{seed=} {geometry}")


@pytest.mark.parametrize("name", NAMES)
def test_symbolic_indices_and_unknown_sizes(operators, name):
    operands, indices = random_call(name, 1)
    specs = [tf.TensorSpec([None] * len(value.shape), value.dtype) for value in operands]
    specs += [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)]
    traced = tf.function(operators[name]).get_concrete_function(*specs)
    assert traced.structured_outputs.shape.as_list()[:2] == [None, None]
    table, spread = indices
    spread = np.zeros(3, np.int32) if spread is None else spread
    found = traced(*operands, tf.constant(table), tf.constant(spread))
    close(found, NAIVE[name](*operands, table, spread), tf.float32, name)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_an_empty_batch_and_no_gradient(operators, name):
    operands, indices = random_call(name, 5)
    operands[0] = operands[0][:0]
    shown, *found = gradients(operators[name], operands, indices)
    assert shown.shape[0] == 0
    assert all(np.all(gradient.numpy() == 0) for gradient in found)


def test_the_largest_of_not_a_number_is_not_a_number(operators):
    rows = np.ones((1, 3, 37), np.float32)
    rows[0, 1] = np.nan
    shown = operators["max_pool"](tf.constant(rows), np.array([[0, 1, 2], [0, -1, 2]], np.int32))
    assert np.isnan(shown[0, 0]).all() and (shown[0, 1].numpy() == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_written_with_built_in_operations_for_any_batch(name):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    operands, _ = random_call(name, 1)
    geometry = Geometry(kernel_size=3, input_size=(6, 5), strides=2, padding="same")
    channels = operands[0].shape[2]
    inputs = np.random.default_rng(1).normal(size=(3, 30, channels)).astype(np.float32)
    rest = [tf.ones([9, channels, 2]) * 0.5, None] if "conv" in name else []
    indices = conv_table(geometry), np.array([0, 2, 2, 8], np.int32)
    function = tf.function(
        lambda x: getattr(kernels, name)(x, *rest, *indices),
        input_signature=[tf.TensorSpec([None, 30, channels])],
    )
    with kernels.plain():
        concrete = function.get_concrete_function()
    interpreter = Interpreter(
        model_content=tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert(),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(entry["index"], inputs.shape)
    interpreter.allocate_tensors()
    names = {operation["op_name"] for operation in interpreter._get_ops_details()}
    assert not names & {"SHAPE", "WHILE"} and not any("Flex" in one for one in names), names
    interpreter.set_tensor(entry["index"], inputs)
    interpreter.invoke()
    close(
        interpreter.get_tensor(result["index"]),
        NAIVE[name](inputs, *rest, *indices),
        tf.float32,
        name,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_runs_natively_but_is_saved_plain(name, tmp_path):
    if kernels.backend().operations is None:
        pytest.skip(f"backend: {kernels.backend()}")
    operands, indices = random_call(name, 2)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(operands[0].shape)])
        def __call__(self, rows):
            return getattr(kernels, name)(rows, *operands[1:], *indices)

    def operations(function) -> set[str]:
        return {operation.type for operation in function.graph.get_operations()}

    module = Module()
    live = tf.function(lambda x: getattr(kernels, name)(x, *operands[1:], *indices))
    assert any("Espace" in one for one in operations(live.get_concrete_function(operands[0])))
    tf.saved_model.save(module, tmp_path / "saved")
    served = tf.saved_model.load(tmp_path / "saved")
    (concrete,) = served.__call__.concrete_functions
    assert not any("Espace" in one for one in operations(concrete))
    close(served(operands[0]), live(operands[0]), tf.float32, name)


def model_with_mask(seed: int):
    import keras

    from espace_tf import keras_layers

    keras.utils.set_random_seed(seed)
    layer = keras_layers.for_library(keras).MaskedConv2D
    positions = IndexMap.conv(Geometry(kernel_size=3, input_size=(16, 16), padding="same")).table
    kept = np.arange(0, len(positions), 3)
    inputs = keras.Input([16, 16, 8])
    hidden = layer(24, 3, padding="same", activation="relu", positions=kept)(inputs)
    return keras.Model(inputs, layer(8, 3, padding="same", positions=kept)(hidden))


def test_two_keras_models_in_threads_give_what_they_give_alone():
    models = [model_with_mask(seed) for seed in (0, 1)]
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 8)).astype(np.float32)
    expected = [model(images).numpy() for model in models]
    assert not np.allclose(*expected)
    wrong, rounds = [], 40
    compiled = [tf.function(model) for model in models]

    def work(index: int):
        for _ in range(rounds):
            for call in (models[index], compiled[index]):
                error = np.abs(call(images).numpy() - expected[index]).max()
                if error > 1e-5 * np.abs(expected[index]).max():
                    wrong.append((index, error))

    threads = [threading.Thread(target=work, args=[index]) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
