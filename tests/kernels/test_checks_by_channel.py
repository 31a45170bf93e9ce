"""Every wrong argument of the depthwise convolution and of pooling is refused by its name."""

import numpy as np
import pytest
import tensorflow as tf

from espace_tf import kernels

VALID = {
    "rows": np.ones((2, 4, 3), np.float32),
    "filter": np.ones((2, 3, 2), np.float32),
    "bias": np.ones(6, np.float32),
    "table": np.array([[0, 3], [-1, 2]], np.int32),
    "spread": np.array([0, 1, 1], np.int32),
}
INDICES = [
    ("table", np.array([[0, 4], [1, 2]], np.int32)),
    ("table", np.array([[0, -2], [1, 2]], np.int32)),
    ("table", np.array([0, 1], np.int32)),
    ("table", np.array([[0, 1]], np.int64)),
    ("table", np.zeros((0, 2), np.int32)),
    ("spread", np.array([0, 2], np.int32)),
    ("spread", np.array([-1, 0], np.int32)),
    ("spread", np.array([[0]], np.int32)),
    ("spread", np.zeros(0, np.int32)),
    ("rows", np.ones((4, 3), np.float32)),
    ("rows", np.ones((2, 4, 3), np.int32)),
]
WEIGHTS = [
    ("table", np.array([[0], [1]], np.int32)),
    ("filter", np.ones((2, 4, 2), np.float32)),
    ("filter", np.ones((2, 3), np.float32)),
    ("filter", np.ones((2, 3, 2), np.float64)),
    ("bias", np.ones(3, np.float32)),
    ("bias", np.ones((1, 6), np.float32)),
]
CASES = [
    *(("masked_depthwise_conv2d", *case) for case in INDICES + WEIGHTS),
    *((name, *case) for name in ("max_pool", "avg_pool") for case in INDICES),
]


def arguments_of(name: str) -> dict:
    wanted = VALID if "conv" in name else {"rows", "table", "spread"}
    return {key: VALID[key] for key in wanted}


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("operator", "name", "value"), CASES)
def test_errors_name_the_argument(operator, name, value, symbolic):
    arguments = {**arguments_of(operator), name: value}
    call = getattr(kernels, operator)
    if symbolic:
        specs = {key: tf.TensorSpec(None, array.dtype) for key, array in arguments.items()}
        traced = tf.function(lambda **tensors: call(**tensors))
        arguments = {key: tf.constant(array) for key, array in arguments.items()}
    with pytest.raises(
        (TypeError, ValueError, tf.errors.InvalidArgumentError), match=rf"\b{name}[ _]must"
    ):
        if symbolic:
            call = traced.get_concrete_function(**specs)
        call(**arguments)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be one of .*'relu6'.* 'softmax'"):
        kernels.masked_depthwise_conv2d(**VALID, activation="softmax")


def raw(operation: str, **changes):
    """The native operation itself, unchecked by Python."""
    operations = kernels.backend().operations
    if operations is None:
        pytest.skip(f"backend: {kernels.backend()}")
    out = [2, 3, 6] if "depthwise" in operation else [2, 3, 3]
    arguments = {key: tf.constant(value) for key, value in VALID.items()}
    options = {"use_spread": True}
    if "pool" in operation:
        options["kind"] = "max"
        del arguments["filter"], arguments["bias"]
    elif operation.endswith("grad"):
        del arguments["bias"]
        arguments["out"] = tf.ones(out)
    else:
        options["use_bias"] = True
    if operation.endswith("grad"):
        arguments["grad_out"] = tf.ones(out)
    return getattr(operations, operation)(**{**arguments, **options, **changes})


COMMON = [
    ({"rows": tf.ones([4, 3])}, "rows must be"),
    ({"rows": tf.ones([2, 0, 3])}, "positions of rows must be in"),
    ({"table": tf.zeros([6], tf.int32)}, "table must be"),
    ({"table": tf.zeros([0, 2], tf.int32)}, "rows of table must be in"),
    ({"table": tf.fill([6, 2], 4)}, "table must hold values"),
    ({"table": tf.fill([6, 2], -2)}, "table must hold values"),
    ({"table": tf.fill([6, 2], 2**31 - 1)}, "table must hold values"),
    ({"spread": tf.zeros([3, 1], tf.int32)}, "spread must be"),
    ({"spread": tf.zeros([0], tf.int32)}, "length of spread must be in"),
    ({"spread": tf.fill([3], 2)}, "spread must hold values"),
    ({"spread": tf.fill([3], -1)}, "spread must hold values"),
]
FILTER = [
    ({"rows": tf.ones([2, 4, 2])}, "filter must have the 2 channels"),
    ({"filter": tf.ones([2, 3])}, "filter must be"),
    ({"filter": tf.ones([2, 3, 0])}, "columns of filter must be in"),
    ({"table": tf.zeros([6, 3], tf.int32)}, "table must have the 2 taps"),
]
BIAS = [({"bias": tf.ones([3])}, "bias must be"), ({"bias": tf.ones([6, 1])}, "bias must be")]
UPSTREAM = [({"grad_out": tf.ones([2, 3, 1])}, "grad_out must be")]
OUT = [({"out": tf.ones([2, 2, 6])}, r"\bout must be")]
RAW = {
    "espace_masked_depthwise_conv2d": COMMON + FILTER + BIAS,
    "espace_masked_depthwise_conv2d_grad": COMMON + FILTER + OUT + UPSTREAM,
    "espace_pool": COMMON,
    "espace_pool_grad": COMMON + UPSTREAM,
}


@pytest.mark.parametrize(
    ("operation", "changes", "words"),
    [(name, *case) for name, cases in RAW.items() for case in cases],
)
def test_the_operations_name_a_malformed_input(operation, changes, words):
    raw(operation)  # the unchanged call is valid
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        raw(operation, **changes)


def test_sizes_past_any_memory_are_refused():
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError)):
        raw(
            "espace_masked_depthwise_conv2d",
            rows=tf.ones([2**20, 1, 1]),
            filter=tf.ones([1, 1, 2**20]),
            table=tf.zeros([2**20, 1], tf.int32),
            spread=tf.zeros([2**20], tf.int32),
            bias=tf.ones([2**20]),
        )
