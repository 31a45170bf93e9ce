"""Functions traced for one computation: same results, few tracings, no warning of many."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.analysis import statistics
from espace_tf.network.sites import read_sites
from espace_tf.network.tracing import traced
from espace_tf.training.batch_norms import reestimate_batch_norm

SEED = 6


def test_traced_again_only_for_new_shapes():
    traces = []

    @traced
    def total(x, y, scale):
        traces.append(x["a"].shape)
        found = scale * tf.reduce_sum(x["a"])
        return {"sum": found if y is None else found + y[0]}

    rng = np.random.default_rng(SEED)
    for size in (4, 4, 3, 4, 3, 5, 6):
        values = rng.random((size, 2), np.float32)
        found = total({"a": values}, [np.float32(1)], np.float32(2))
        assert float(found["sum"]) == pytest.approx(2 * values.sum() + 1, rel=1e-5), f"seed {SEED}"
    assert len(traces) == 2  # one size, then any
    assert float(total({"a": values}, None, 2)["sum"]) == pytest.approx(2 * values.sum(), rel=1e-5)


def test_one_trace_for_batches_of_any_size():
    traces = []

    def total(x, scale):
        traces.append(x["a"].shape)
        return scale[0] * tf.reduce_sum(x["a"])

    function, rng = traced(total, batches=1), np.random.default_rng(SEED)
    for size in (4, 3, 5):
        values = rng.random((size, 2), np.float32)
        found = float(function({"a": values}, np.float32([2, 3])))
        assert found == pytest.approx(2 * values.sum(), rel=1e-5), f"seed {SEED}"
    assert [tuple(shape) for shape in traces] == [(None, 2)]


def test_many_computations_are_not_taken_for_many_tracings(caplog):
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()]
    )
    x = np.random.default_rng(SEED).random((4, 8, 8, 1), np.float32)
    with caplog.at_level(logging.WARNING, "tensorflow"):
        tf.get_logger().addHandler(caplog.handler)
        try:
            for _ in range(12):
                statistics.input_moments(model, read_sites(model), [(x, None)], 4, SEED)
                reestimate_batch_norm(model, x)
        finally:
            tf.get_logger().removeHandler(caplog.handler)
    assert "retracing" not in caplog.text
