"""The network that speeds are measured against: stripped and traced once."""

import keras
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.timing import runtimes
from espace_tf.timing.reference import Reference


@pytest.mark.parametrize("runtime", ["tf", "litert"])
def test_the_given_network_is_stripped_and_traced_once(runtime, monkeypatch):
    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Flatten()])
    stripped, traced = [], []
    form, runner = runtimes.find(runtime).form, runtimes.runner
    monkeypatch.setattr(
        runtimes.find(runtime), "form", lambda each: stripped.append(each) or form(each)
    )
    monkeypatch.setattr(
        runtimes, "runner", lambda each, *a: traced.append(each) or runner(each, *a)
    )
    against = Reference(model, EspaceConfig(runtime=runtime, batch_size=2))
    small = apply(model, Plan.uniform(model, rank_ratio=0.3))
    found = [against.speedup(small, repeats=3, seconds=1.0) for _ in range(2)]
    assert min(each.value for each in found) > 0
    assert stripped.count(model) == 1 and traced.count(against.stripped) == 1
    assert stripped.count(small) == 1
