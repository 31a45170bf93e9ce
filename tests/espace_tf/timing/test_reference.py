"""The network that speeds are measured against: stripped and traced once."""

import keras
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.deploy import inference
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.timing import reference
from espace_tf.timing.reference import Reference


@pytest.mark.parametrize("runtime", ["tf", "litert"])
def test_the_given_network_is_stripped_and_traced_once(runtime, monkeypatch):
    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Flatten()])
    stripped, traced = [], []
    copy, runner = inference.inference_copy, reference.measure.runner
    monkeypatch.setattr(
        reference, "inference_copy", lambda each, *a: stripped.append(each) or copy(each, *a)
    )
    monkeypatch.setattr(
        reference.measure, "runner", lambda each, *a: traced.append(each) or runner(each, *a)
    )
    against = Reference(model, EspaceConfig(runtime=runtime, batch_size=2))
    small = apply(model, Plan.uniform(model, rank_ratio=0.3))
    found = [against.speedup(small, repeats=3, seconds=1.0) for _ in range(2)]
    assert min(found) > 0
    assert stripped.count(model) == 1 and traced.count(against.stripped) == 1
    assert stripped.count(small) == 2
