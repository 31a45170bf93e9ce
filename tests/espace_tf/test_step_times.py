"""Convolutions timed as steps of one program: every layer gets the time of its own steps."""

import numpy as np
import pytest

from espace_tf import step_times
from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D
from espace_tf.kernels.fused import fused_operations


def layers():
    options = {"filters": 8, "kernel_size": 3, "padding": "same"}
    return [
        MaskedConv2D(**options),
        DecomposedConv2D(rank=2, **options),
        MaskedConv2D(positions=[0, 7, 20], **options),
        DecomposedConv2D(rank=3, order="horizontal", positions=[0, 7, 20], **options),
    ]


class Recorded:
    """What alternate is given, called so often, without a clock."""

    def __init__(self, calls, *, repeats, seconds):
        for _ in range(repeats):
            calls[0]()


def test_the_steps_of_a_layer_add_up_to_its_time(monkeypatch):
    counted = []

    def program(given, shape):
        call, owners = made(given, shape)
        assert call().shape == (len(owners),)
        counted.extend(owners)
        # Step i takes i + 1 ms, in all calls but the first two, which are for warming up.
        times = iter([99.0, 99.0, 1.0, 1.0, 1.0])
        return lambda: next(times) * 1e6 * np.arange(1, len(owners) + 1), owners

    made = step_times._program
    monkeypatch.setattr(step_times, "_program", program)
    monkeypatch.setattr(step_times.timing, "alternate", Recorded)
    monkeypatch.setattr(step_times, "_REPEATS", 5)
    if fused_operations() is None:
        pytest.skip("there is no native binary")
    found = step_times.step_times(layers(), (2, 6, 6, 5))
    assert counted == [0, 1, 2, 2, 3, 4, 4, 0]
    np.testing.assert_allclose(found, [2, 3 + 4, 5, 6 + 7])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_layer_takes_time(batch):
    if fused_operations() is None:
        pytest.skip("there is no native binary")
    found = step_times.step_times(layers(), (batch, 6, 6, 5), seconds=0.0)
    assert len(found) == 4
    assert min(found) > 0
