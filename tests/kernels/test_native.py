"""The native operator against the reference and TensorFlow's convolution; hostile inputs."""

import functools
import threading
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from espace_tf import kernels
from espace_tf.kernels import index_map, loader, native, reference
from espace_tf.kernels.index_map import Geometry, IndexMap

if kernels.backend().name != "native":
    pytest.skip(f"backend: {kernels.backend()}", allow_module_level=True)

OPERATIONS = kernels.backend().operations
TOLERANCE = {tf.float32: 1e-5, tf.float16: 5e-3, tf.bfloat16: 5e-2}
native_conv = functools.partial(native.convolve, OPERATIONS, "masked_conv2d")


def random_call(seed: int, dtype: tf.DType = tf.float32, groups: int = 1) -> tuple:
    rng = np.random.default_rng(seed)
    batch, rows, channels, taps = (int(rng.integers(1, n)) for n in (4, 30, 40, 8))
    computed, filters = int(rng.integers(1, 40)), int(rng.integers(1, 120)) * groups
    shapes = [(batch, rows, channels * groups), (taps, channels, filters), (filters,)]
    operands = [tf.cast(rng.normal(size=shape), dtype) for shape in shapes]
    if rng.random() < 0.3:
        operands[2] = None
    table = rng.integers(-1, rows, (computed, taps)).astype(np.int32)
    spread = rng.integers(0, computed, rng.integers(1, 50)).astype(np.int32)
    return *operands, table, spread if rng.random() < 0.6 else None


def close(found, expected, dtype, message):
    found, expected = (np.asarray(tf.cast(value, tf.float64)) for value in (found, expected))
    assert found.shape == expected.shape, message
    scale = max(np.abs(expected).max(initial=0), 1)
    assert np.abs(found - expected).max(initial=0) <= TOLERANCE[dtype] * scale, message


def gradients(operator, operands, table, spread, **options):
    watched = [value for value in operands if value is not None]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        shown = operator(*operands, table, spread, **options)
        loss = tf.reduce_sum(tf.cast(shown, tf.float32) * tf.cos(tf.range(shown.shape[-1] * 1.0)))
    return [shown, *tape.gradient(loss, watched)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_the_reference(seed, dtype):
    *operands, table, spread = random_call(seed, dtype)
    activation = list(reference.ACTIVATIONS)[seed % len(reference.ACTIVATIONS)]
    if dtype in (tf.float16, tf.bfloat16) and activation in ("relu", "relu6"):
        activation = "none"  # which values are cut off depends on the rounding
    found, expected = (
        gradients(operator, operands, table, spread, activation=activation)
        for operator in (native_conv, reference.masked_conv2d)
    )
    for one, other in zip(found, expected, strict=True):
        close(one, other, dtype, f"{seed=} {activation=}")
        assert one.dtype == dtype


@pytest.mark.parametrize("seed", range(4))
def test_groups_agree_with_the_reference(seed):
    *operands, table, spread = random_call(seed, groups=3)
    found, expected = (
        gradients(operator, operands, table, spread, groups=3, activation="relu")
        for operator in (native_conv, reference.masked_conv2d)
    )
    for one, other in zip(found, expected, strict=True):
        close(one, other, tf.float32, f"{seed=}")


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_finite_differences(seed):
    *operands, table, spread = random_call(seed)
    rng = np.random.default_rng(seed)
    _, *found = gradients(native_conv, operands, table, spread)
    watched = [value for value in operands if value is not None]
    for index, gradient in enumerate(found):
        direction = rng.normal(size=gradient.shape)
        moved = []
        for step in (-1e-2, 1e-2):
            changed = [np.asarray(value, np.float64) for value in watched]
            changed[index] = changed[index] + step * direction
            changed = [tf.constant(value, tf.float32) for value in changed]
            changed += [None] * (3 - len(changed))
            shown = native_conv(*changed, table, spread).numpy().astype(np.float64)
            moved.append((shown * np.cos(np.arange(shown.shape[-1]))).sum())
        expected = (moved[1] - moved[0]) / 2e-2
        size = np.linalg.norm(gradient)
        assert abs(np.vdot(gradient, direction) - expected) < 1e-3 * max(size, 1), f"{seed=}"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 16, 20])
def test_all_kept_is_the_dense_convolution(channels, stride):
    rng = np.random.default_rng(channels)
    geometry = Geometry(kernel_size=(3, 5), input_size=(9, 11), strides=stride, padding="same")
    full = replace(IndexMap.conv(geometry), geometry=None)
    inputs, kernel = (
        tf.constant(rng.normal(size=shape), tf.float32)
        for shape in ((2, 9, 11, channels), (3, 5, channels, 70))
    )
    shown = kernels.apply_map(inputs, kernel, None, full)
    expected = tf.nn.conv2d(inputs, kernel, stride, "SAME")
    close(tf.reshape(shown, expected.shape), expected, tf.float32, f"{channels=}")


@pytest.mark.parametrize("filters", [64, 68])
def test_a_large_output_is_the_dense_convolution(filters):
    """One that goes past the caches, or, with such rows, does not."""
    rng = np.random.default_rng(filters)
    inputs = tf.constant(rng.normal(size=(2, 130, 130, 3)), tf.float32)
    kernel = tf.constant(rng.normal(size=(3, 3, 3, filters)), tf.float32)
    kept = np.sort(rng.choice(130 * 130, 130 * 130 // 4, replace=False))
    geometry = Geometry(kernel_size=(3, 3), input_size=(130, 130), padding="same")
    index_map = IndexMap.conv(geometry, kept)
    dense = tf.reshape(tf.nn.conv2d(inputs, kernel, 1, "SAME"), [2, -1, filters])
    expected = tf.gather(tf.gather(dense, kept, axis=1), index_map.spread, axis=1)
    assert tf.size(expected) >= 2**20
    shown = kernels.apply_map(inputs, kernel, None, index_map)
    close(tf.reshape(shown, expected.shape), expected, tf.float32, f"{filters=}")


def test_unknown_sizes_stay_unknown_and_known_ones_known():
    *operands, table, _ = random_call(3)
    rows = tf.TensorSpec([None, None, operands[0].shape[2]])
    function = tf.function(lambda x: native_conv(x, *operands[1:], table, None))
    shape = function.get_concrete_function(rows).structured_outputs.shape
    assert shape.as_list() == [None, len(table), operands[1].shape[2]]
    close(function(operands[0]), native_conv(*operands, table, None), tf.float32, "traced")


def raw(**changes):
    arguments = {
        "rows": tf.ones([2, 5, 3]),
        "filter": tf.ones([2, 3, 4]),
        "table": tf.zeros([6, 2], tf.int32),
        "spread": tf.zeros([7], tf.int32),
        "bias": tf.ones([4]),
        "use_spread": True,
        "use_bias": True,
    }
    return OPERATIONS.espace_masked_conv2d(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": tf.ones([5, 3])}, "rows must be"),
        ({"rows": tf.ones([2, 0, 3])}, "positions of rows must be in"),
        ({"rows": tf.ones([2, 5, 2])}, "filter must have the 2 channels"),
        ({"filter": tf.ones([2, 3])}, "filter must be"),
        ({"filter": tf.ones([2, 3, 0]), "bias": tf.ones([0])}, "columns of filter"),
        ({"table": tf.zeros([6], tf.int32)}, "table must be"),
        ({"table": tf.zeros([6, 3], tf.int32)}, "table must have the 2 taps"),
        ({"table": tf.zeros([0, 2], tf.int32)}, "rows of table"),
        ({"table": tf.fill([6, 2], 5)}, "table must hold values"),
        ({"table": tf.fill([6, 2], -2)}, "table must hold values"),
        ({"table": tf.fill([6, 2], 2**31 - 1)}, "table must hold values"),
        ({"spread": tf.zeros([7, 1], tf.int32)}, "spread must be"),
        ({"spread": tf.zeros([0], tf.int32)}, "length of spread"),
        ({"spread": tf.fill([7], 6)}, "spread must hold values"),
        ({"spread": tf.fill([7], -1)}, "spread must hold values"),
        ({"bias": tf.ones([3])}, "bias must be"),
        ({"bias": tf.ones([4, 1])}, "bias must be"),
    ],
)
def test_a_malformed_input_is_named(changes, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        raw(**changes)


def test_a_malformed_gradient_is_named():
    arguments = {
        "rows": tf.ones([2, 5, 3]),
        "filter": tf.ones([2, 3, 4]),
        "table": tf.zeros([6, 2], tf.int32),
        "spread": tf.zeros([0], tf.int32),
        "use_spread": False,
    }
    for name, out, upstream in (
        ("grad_out", [2, 6, 4], [2, 6, 5]),
        ("out", [2, 5, 4], [2, 6, 4]),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"\b{name} must be"):
            OPERATIONS.espace_masked_conv2d_grad(
                out=tf.ones(out), grad_out=tf.ones(upstream), **arguments
            )


def test_sizes_past_any_memory_are_refused():
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError)):
        raw(
            rows=tf.ones([2**20, 1, 1]),
            filter=tf.ones([1, 1, 2**20]),
            table=tf.zeros([2**20, 1], tf.int32),
            spread=tf.zeros([2**20], tf.int32),
            bias=tf.ones([2**20]),
        )


def test_an_empty_batch_gives_an_empty_batch_and_no_gradient():
    *operands, table, spread = random_call(5)
    operands[0] = operands[0][:0]
    shown, *found = gradients(native_conv, operands, table, spread)
    assert shown.shape[0] == 0
    assert all(np.all(gradient.numpy() == 0) for gradient in found)


def test_not_a_number_passes_through_every_activation():
    for activation in native.FUSED:
        shown = native_conv(
            tf.fill([1, 1, 1], np.nan),
            tf.ones([1, 1, 20]),
            None,
            [[0]],
            None,
            activation=activation,
        )
        assert np.isnan(shown).all(), activation


def test_two_threads_at_once():
    calls = [random_call(seed) for seed in (11, 12)]
    expected = [native_conv(*call).numpy() for call in calls]
    wrong = []

    def work(index: int):
        for _ in range(50):
            if not np.array_equal(native_conv(*calls[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=[index]) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def small_model(keras):
    from espace_tf import keras_layers

    layer = keras_layers.for_library(keras).MaskedConv2D
    inputs = keras.Input([8, 8, 3])
    shown = layer(5, 3, padding="same", activation="relu", positions=[0, 9, 27, 63])(inputs)
    return keras.Model(inputs, shown)


def operation_types(function) -> set[str]:
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}


def test_a_model_runs_natively_but_is_written_plain(tmp_path):
    import keras

    model = small_model(keras)
    inputs = tf.random.stateless_normal([2, 8, 8, 3], [0, 1])
    live = tf.function(model).get_concrete_function(inputs)
    assert "EspaceMaskedConv2D" in operation_types(live)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    assert "EspaceMaskedConv2D" not in operation_types(served)
    tf.saved_model.save(model, tmp_path / "saved")
    close(live(inputs), next(iter(served(inputs).values())), tf.float32, "served")
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    assert b"EspaceMaskedConv2D" not in content


def test_compiled_with_xla_it_is_plain():
    import keras

    model = small_model(keras)
    inputs = tf.random.stateless_normal([2, 8, 8, 3], [0, 1])
    close(tf.function(model, jit_compile=True)(inputs), model(inputs), tf.float32, "xla")


def test_plain_ends_with_its_context():
    assert not loader.plain_wanted()
    with pytest.raises(KeyError), loader.plain():
        assert loader.plain_wanted()
        raise KeyError
    assert not loader.plain_wanted()


def test_dense_maps_agree_whichever_way_they_run():
    rng = np.random.default_rng(0)
    geometry = Geometry(kernel_size=(3, 1), input_size=(14, 14), padding="same")
    inputs, kernel = (
        tf.constant(rng.normal(size=shape), tf.float32)
        for shape in ((4, 14, 14, 64), (3, 1, 64, 32))
    )
    full = IndexMap.conv(geometry)
    np.testing.assert_array_equal(full.table, index_map.conv_table(geometry))
    found = kernels.apply_map(inputs, kernel, None, full)
    expected = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    close(tf.reshape(found, expected.shape), expected, tf.float32, "dense")
