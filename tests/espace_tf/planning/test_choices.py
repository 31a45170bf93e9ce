"""Times that add up to those of the whole model, in fused graphs and without."""

import numpy as np
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.planning.choices import Choice, Clock
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.option import Option, interpolate_ms
from espace_tf.records.site import Site


def analysis(own=(1.0, 2.0, 3.0), **fields) -> Analysis:
    """Of three convolutions that took so many milliseconds each on their own."""
    config, sites = EspaceConfig(), {}
    for path, ms in zip("abc", own, strict=True):
        sizes = {"input_sizes": ((8, 8),), "output_sizes": ((6, 6),)}
        place = Site(path=path, kind="conv", kernel_size=(3, 3), in_channels=4, filters=4, **sizes)
        options = (Option(ms=ms), Option(rank=2, ms=ms / 4))
        kernel = np.zeros((3, 3, 4, 4), np.float32)
        sites[path] = SiteAnalysis(
            site=place, kernel=kernel, dense_ms=ms, options=options, config=config
        )
    return Analysis(fingerprint="f", config=config, sites=sites, **fields)


@pytest.mark.parametrize("fused, other", [(7.5, 1.5), (30.0, 0.0), (1.0, 0.9), (4.0, 4.0)])
def test_times_in_fused_graphs_add_up_to_those_of_the_whole(fused, other):
    found = analysis(model_ms=10.0, fused_ms=fused, other_ms=other)
    clock = Clock.of(found, {"b": 2.0})
    assert clock.model_ms == 10.0, "what the speed is asked of"
    assert clock.other_ms == other
    assert clock.other_ms + clock.total({}) == pytest.approx(fused)
    share = (fused - other) / 6.0
    assert clock.dense_ms == pytest.approx({"a": share, "b": 2 * share, "c": 3 * share})
    dense, pair = found.sites["b"].options
    assert clock.of_option("b", dense) == clock.dense_ms["b"], "measured, not corrected"
    assert clock.of_option("b", pair) == pytest.approx(2.0 * share * pair.ms)
    assert clock.of_option("c", found.sites["c"].options[1]) == pytest.approx(share * 0.75)
    chosen = {"b": Choice(option=pair, ms=0.25 * share)}
    assert clock.total(chosen) == pytest.approx(fused - other - 1.75 * share)


@pytest.mark.parametrize("model, common", [(9.0, 1.0), (3.0, 0.5)])
def test_single_times_are_scaled_down_to_the_whole_never_up(model, common):
    clock = Clock.of(analysis(model_ms=model), {})
    assert clock.model_ms == model
    assert clock.other_ms + clock.total({}) == pytest.approx(model)
    assert clock.dense_ms == pytest.approx({"a": common, "b": 2 * common, "c": 3 * common})


def test_a_model_that_was_not_timed_takes_the_sum_of_its_layers():
    clock = Clock.of(analysis(), {})
    assert (clock.model_ms, clock.other_ms, clock.total({})) == (6.0, 0.0, 6.0)


@pytest.mark.parametrize(
    "macs, ms",
    [
        ([10, 20, 30], [1.0, 1.5, 2.0]),  # on the line
        ([5, 40], [0.75, 2.5]),  # and beyond it
        ([0, -100], [0.5, 0.1]),  # never below a tenth of the cheapest
    ],
)
def test_times_between_and_beyond_measurements_lie_on_lines(macs, ms):
    assert interpolate_ms(macs, [30, 10], [2.0, 1.0]).tolist() == pytest.approx(ms)
    # Two measurements at one number of operations are one point, at either end.
    found = interpolate_ms(macs, [30, 10, 10, 30], [1.9, 0.9, 1.1, 2.1])
    assert found.tolist() == pytest.approx(ms, abs=0.01)


def test_one_measurement_gives_times_in_proportion():
    assert interpolate_ms([5, 20, 0], [10], [1.0]).tolist() == pytest.approx([0.5, 2.0, 0.1])
