"""Medians of calls taken in turns, on a clock that the test moves."""

import keras
import numpy as np
import pytest

from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D
from espace_tf.records.site import Site
from espace_tf.timing import measure, runtimes


class Clock:
    """Calls that take the times they are told, on a clock of their own."""

    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def call(self, name, seconds):
        times = iter(seconds)

        def run():
            self.order.append(name)
            self.now += next(times, 0.0)

        return run


def test_medians_of_calls_in_turns_after_warming_up():
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        fast = clock.call("fast", [9, 9, 0.001, 0.003, 0.050, 0.002, 0.004])
        slow = clock.call("slow", [9, 9, 0.020, 0.010, 0.030, 0.900, 0.040])
        found = measure.alternate([fast, slow], repeats=5)
    np.testing.assert_allclose(found, [3.0, 30.0])
    assert clock.order == ["fast", "slow"] * 7


@pytest.mark.parametrize("seconds, rounds", [(0.0, 3), (3.5, 4), (100.0, 10)])
def test_no_round_begins_after_the_time_but_three_are_taken(seconds, rounds):
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        measure.alternate([clock.call("one", [0, 0] + [1.0] * 10)], repeats=10, seconds=seconds)
    assert len(clock.order) == 2 + rounds


def test_a_ratio_of_rounds_survives_phases_of_the_machine():
    # Slow, then fast within the slower's own calls: medians of the times are of both phases.
    pace = [5, 5, 1, 1, 1, 4, 4]
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        slow = clock.call("slow", [9, 9, *(0.03 * each for each in pace)])
        fast = clock.call("fast", [9, 9, *(0.01 * each for each in pace)])
        assert measure.ratio(slow, fast, repeats=7, seconds=100).value == pytest.approx(3.0)
        hit = clock.call("hit", [9, 9, 0.03, 0.5, 0.03, 0.03, 0.03])
        fast = clock.call("fast", [9, 9, 0.01, 0.01, 0.01, 0.2, 0.01])
        assert measure.ratio(hit, fast, repeats=5, seconds=100).value == pytest.approx(3.0)


def test_the_error_of_a_ratio_holds_what_another_measurement_differs_by(monkeypatch):
    clock, random = Clock(monkeypatch), np.random.default_rng(0)

    def measured(phases: np.ndarray) -> measure.Ratio:
        """Of a call whose time changes from phase to phase, ten rounds each."""
        slow = clock.call("slow", [9, 9, *np.repeat(phases, 10)])
        fast = clock.call("fast", [9, 9, *np.ones(10 * len(phases))])
        return measure.ratio(slow, fast, repeats=10 * len(phases), seconds=1e9)

    assert measured(np.full(8, 3.0)) == (3.0, 0.0)
    found = [measured(random.normal(3, 0.3, 8)) for _ in range(60)]
    near = [abs(each.value / 3 - 1) < 2 * each.error for each in found]
    assert np.mean(near) > 0.9
    assert 0.04 < np.median([each.error for each in found]) < 0.1


def test_a_busy_machine_is_measured_longer(monkeypatch):
    clock = Clock(monkeypatch)
    for tolerated, rounds in ((np.inf, 8), (0.5, 8), (0.01, 8 * 3)):
        clock.order.clear()
        slow = clock.call("slow", [9, 9, *np.linspace(1, 3, 8), *np.linspace(1, 3, 40)])
        fast = clock.call("fast", [1.0] * 60)
        measure.ratio(slow, fast, repeats=8, seconds=1e9, tolerated=tolerated)
        assert len(clock.order) == 2 * (rounds + 2), tolerated


def test_a_quiet_machine_is_measured_as_long_as_its_error_asks(monkeypatch):
    clock, random = Clock(monkeypatch), np.random.default_rng(0)
    taken = {}
    for noise in (0.0, 0.2, 0.35):
        clock.order.clear()
        slow = clock.call("slow", [9, 9, *(0.3 + noise * random.normal(0, 0.1, 1000))])
        fast = clock.call("fast", [0.1] * 1002)
        found = measure.ratio(slow, fast, repeats=1000, seconds=1e9, enough=0.01)
        assert found.error <= 0.01 and found.value == pytest.approx(3.0, rel=0.03)
        taken[noise] = len(clock.order) // 2 - 2
    assert taken[0.0] == measure._LOOK and taken[0.0] < taken[0.2] < taken[0.35] < 1000
    clock.order.clear()
    slow, fast = clock.call("slow", [1e-3] * 1000), clock.call("fast", [1e-3] * 1000)
    measure.ratio(slow, fast, repeats=900, seconds=1e9, enough=0.01)
    rounds = len(clock.order) // 2 - 2
    assert 2e-3 * rounds >= measure._SOONEST, "phases of a machine last longer than a few calls"


def test_a_call_may_tell_the_seconds_that_it_took_elsewhere(monkeypatch):
    clock = Clock(monkeypatch)
    here, elsewhere = clock.call("here", [1.0] * 5), lambda: clock.call("", [7.0])() or 0.25
    assert measure.ratio(here, elsewhere, repeats=3, seconds=100).value == pytest.approx(4.0)


def site(**changes):
    fields = {
        "path": "conv",
        "kind": "conv",
        "kernel_size": (3, 3),
        "in_channels": 4,
        "filters": 6,
        "groups": 2,
        "padding": "same",
        "strides": (2, 1),
        "input_sizes": ((8, 9),),
        "output_sizes": ((4, 9),),
    }
    return Site(**fields | changes)


@pytest.mark.parametrize(
    "change, kind",
    [
        ({}, keras.layers.Conv2D),
        ({"positions": np.arange(0, 36, 2)}, MaskedConv2D),
        ({"rank": 2, "order": "horizontal"}, DecomposedConv2D),
        ({"rank": 2, "positions": np.arange(0, 36, 3)}, DecomposedConv2D),
    ],
)
def test_a_single_layer_is_like_its_site(change, kind):
    layer = measure.single_layer(site(), **change)
    shape = (2, 8, 9, 4)
    runtimes.find("tf").layer(layer, shape, None)()
    assert type(layer) is kind and layer.strides == (2, 1) and layer.groups == 2
    assert layer.compute_output_shape(shape) == (2, 4, 9, 6)
    if "rank" in change:
        assert layer.rank == 2 and layer.order == change.get("order", "vertical")
    if "positions" in change:
        np.testing.assert_array_equal(layer.positions, change["positions"])


def test_a_single_layer_is_channels_last_whatever_is_the_default():
    keras.config.set_image_data_format("channels_first")
    try:
        layers = [measure.single_layer(site()), measure.single_layer(site(), rank=2)]
    finally:
        keras.config.set_image_data_format("channels_last")
    for layer in layers:
        assert layer.compute_output_shape((2, 8, 9, 4)) == (2, 4, 9, 6)


@pytest.mark.parametrize("change", [{}, {"rank": 2}])
def test_a_single_layer_is_in_float32_whatever_the_policy_of_the_process_is(change):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = measure.single_layer(site(groups=1), **change)
        runtimes.find("litert").layer(layer, (2, 8, 9, 4), None)()
    finally:
        keras.config.set_dtype_policy("float32")
    assert layer.compute_dtype == "float32"
