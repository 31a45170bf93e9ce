"""Search: what a measurement tells of a prediction, on clocks that are made up."""

import keras
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.network.network import Network
from espace_tf.planning import search
from espace_tf.planning.search import Search
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.option import Option

LAYERS, DENSE, CHANGED, OTHER = 6, 1.0, 0.005, 1.0  # milliseconds in fused graphs
MODEL = 10.0  # in TensorFlow


def network() -> Network:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 8))
    for index in range(LAYERS):
        x = keras.layers.Conv2D(8, 3, padding="same", name=f"conv{index}")(x)
    return Network.read(keras.Model(inputs, x))


def analysis(read: Network, fused: bool) -> Analysis:
    sites = {}
    for number, site in enumerate(read.sites):
        pair = {"rank": 1, "order": "vertical", "damage": 1e-4 * (1 + number)}
        options = (
            Option(ms=DENSE, macs=site.macs()),
            Option(ms=CHANGED, macs=site.macs(1), **pair),
        )
        kernel, bias = read.layers[site.path].get_weights()
        sites[site.path] = SiteAnalysis(
            site=site,
            kernel=kernel,
            bias=bias,
            dense_ms=DENSE,
            options=options,
            config=EspaceConfig(),
        )
    times = {"model_ms": MODEL}
    if fused:
        times |= {"fused_ms": LAYERS * DENSE + OTHER, "other_ms": OTHER}
    return Analysis(fingerprint=read.fingerprint, config=EspaceConfig(), sites=sites, **times)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("extra", [-0.5, 0.0, 1.2])
def test_time_that_no_changed_layer_explains_is_spent_elsewhere(monkeypatch, fused, extra):
    read, least = network(), 1.0 if fused else MODEL - LAYERS * DENSE

    def measured(reference, small, *_):
        changed = len(small.espace_plan.layers)
        spent = least + extra + CHANGED * changed + DENSE * (LAYERS - changed)
        return MODEL / spent

    monkeypatch.setattr(search, "_measured_speedup", measured)
    found = Search(read, analysis(read, fused), reference=None)
    asked = MODEL / (least + extra + CHANGED * 4 + DENSE * 2)  # what four changed layers reach
    monkeypatch.setattr(Search, "_finished", lambda self, tried: tried)
    tried = found.at_speed(asked)
    assert len(tried.plan.layers) == 4
    assert tried.speed == pytest.approx(asked, rel=1e-6)
