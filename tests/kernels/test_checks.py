"""Every wrong argument is refused by its name, eager and in graphs alike."""

import numpy as np
import pytest
import tensorflow as tf

from espace_tf import kernels
from espace_tf.kernels.index_map import Geometry, IndexMap


def valid_arguments():
    return {
        "rows": np.ones((2, 4, 3), np.float32),
        "filter": np.ones((2, 3, 5), np.float32),
        "bias": np.ones(5, np.float32),
        "table": np.array([[0, 3], [-1, 2]], np.int32),
        "spread": np.array([0, 1, 1], np.int32),
    }


WRONG = {
    "table": [
        np.array([[0, 4], [1, 2]], np.int32),
        np.array([[0, -2], [1, 2]], np.int32),
        np.array([0, 1], np.int32),
        np.array([[0], [1]], np.int32),
        np.array([[0, 1]], np.int64),
        np.array([[0, 1]], np.float32),
        np.zeros((0, 2), np.int32),
    ],
    "spread": [
        np.array([0, 2], np.int32),
        np.array([-1, 0], np.int32),
        np.array([[0]], np.int32),
        np.array([0], np.int64),
        np.array([True]),
        np.zeros(0, np.int32),
    ],
    "rows": [
        np.ones((4, 3), np.float32),
        np.ones((2, 4, 3, 1), np.float32),
        np.ones((2, 4, 3), np.int32),
    ],
    "filter": [
        np.ones((2, 4, 5), np.float32),
        np.ones((6, 5), np.float32),
        np.ones((2, 3, 5), np.float64),
    ],
    "bias": [np.ones(4, np.float32), np.ones((1, 5), np.float32), np.ones(5, np.float16)],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize("mode", ["eager", "constants", "symbolic", "unknown shapes"])
@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda v: getattr(v, "shape", v))
def test_errors_name_the_argument(name, value, mode):
    arguments = {**valid_arguments(), name: value}
    tensors = {key: tf.constant(array) for key, array in arguments.items()}
    specs = {
        key: tf.TensorSpec(None if mode == "unknown shapes" else array.shape, array.dtype)
        for key, array in arguments.items()
    }
    symbolic = tf.function(lambda **tensors: kernels.masked_conv2d(**tensors))
    calls = {
        "eager": lambda: kernels.masked_conv2d(**arguments),
        "constants": tf.function(lambda: kernels.masked_conv2d(**arguments)),
        "symbolic": lambda: symbolic.get_concrete_function(**specs)(**tensors),
        "unknown shapes": lambda: symbolic.get_concrete_function(**specs)(**tensors),
    }
    errors = (TypeError, ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(errors, match=rf"\b{name}[ _]must"):
        calls[mode]()


@pytest.mark.parametrize("name", ["rows", "filter", "table"])
def test_none_is_refused_by_name(name):
    with pytest.raises(TypeError, match=f"{name} must be a tensor"):
        kernels.masked_conv2d(**{**valid_arguments(), name: None})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([[0, 2**31]], ValueError),
        ([[0, 2**32]], ValueError),  # which would wrap to 0
        ([[0, -(2**70)]], ValueError),
        ([[np.int64(2**33), 1]], ValueError),
        ([np.array([2**33, 1])], ValueError),
        ([[True, False]], TypeError),
        ([[2, True]], TypeError),
        ([[0.5, 1]], TypeError),
    ],
)
def test_lists_of_indices_are_neither_wrapped_nor_taken_for_numbers(value, error):
    with pytest.raises(error, match="table must be int32"):
        kernels.masked_conv2d(**{**valid_arguments(), "table": value})
    listed = [[0, np.int64(3)], [-1, 2]]
    np.testing.assert_array_equal(
        kernels.masked_conv2d(**{**valid_arguments(), "table": listed}),
        kernels.masked_conv2d(**valid_arguments()),
    )


def test_rows_of_unknown_number_are_checked_against_a_constant_table():
    arguments = valid_arguments()
    rows = arguments.pop("rows")
    compiled = tf.function(
        lambda rows: kernels.masked_conv2d(rows, **arguments),
        input_signature=[tf.TensorSpec([None, None, 3])],
    )
    assert compiled(rows).shape == (2, 3, 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table must"):
        compiled(rows[:, :3])


def test_unknown_activation_and_wrong_size_are_refused():
    with pytest.raises(ValueError, match="activation must be one of .*'relu6'.* 'softmax'"):
        kernels.masked_conv2d(**valid_arguments(), activation="softmax")
    with pytest.raises(ValueError, match=r"activation must be one of .*\['relu'\]"):
        kernels.masked_conv2d(**valid_arguments(), activation=["relu"])
    wanted = IndexMap.conv(Geometry(kernel_size=1, input_size=3))
    filter = tf.ones([1, 1, 1, 1])
    with pytest.raises(ValueError, match="activation must be one of"):
        kernels.apply_map(tf.ones([1, 3, 3, 1]), filter, None, wanted, activation="softmax")
    with pytest.raises(ValueError, match=r"inputs must have 9 positions.*\(1, 3, 6, 1\)"):
        kernels.apply_map(tf.ones([1, 3, 6, 1]), filter, None, wanted)
