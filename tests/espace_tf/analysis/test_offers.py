"""Which options are timed, and what time the others get: against a clock that is known."""

import numpy as np
import pytest

from espace_tf.analysis import offers
from espace_tf.config import EspaceConfig
from espace_tf.records.analysis import SiteAnalysis
from espace_tf.records.site import Site
from espace_tf.timing.layer_times import LayerTimes


def milliseconds(option) -> float:
    """A line over operations for every rank, and over ranks for every mask."""
    return 0.1 + 2e-6 * option.macs + 3e-3 * (option.rank or 0)


@pytest.mark.parametrize("fused", [True, False])
def test_times_lie_on_the_lines_between_those_that_are_measured(fused, monkeypatch):
    asked = []

    def measured(analysis, options, *_):
        asked.extend(options)
        return {option: milliseconds(option) for option in options}

    monkeypatch.setattr(offers, "_measure", measured)
    site = Site(path="conv", kind="conv", kernel_size=(3, 3), in_channels=64, filters=64,
                padding="same", input_sizes=((16, 16),), output_sizes=((16, 16),))  # fmt: skip
    kernel = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    analysis = SiteAnalysis(site=site, kernel=kernel, config=EspaceConfig())
    options = offers.offered(analysis)
    found = offers.timed(analysis, options, LayerTimes(), 1.0, fused=fused)
    assert len(found) == len(options) and {each.measured for each in found} == {True, False}
    assert len(asked) == len(set(asked)) == sum(each.measured for each in found)
    assert len(asked) < len(options) / 2
    if fused:  # single operations take all pairs with masks of a family for one line
        np.testing.assert_allclose([each.ms for each in found], list(map(milliseconds, found)))
        masked = {each.rank for each in found if each.family and each.rank}
        timed = {each.rank for each in asked if each.family and each.rank}
        assert len(masked) > 2 and timed == {min(masked), max(masked)}
    for each in found:
        if each.measured:
            assert each.ms == milliseconds(each)
