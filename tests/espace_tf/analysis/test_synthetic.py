"""Inputs made up from batch normalisations: nearer to what these remember than noise is."""

import keras
import numpy as np

from espace_tf.analysis import synthetic
from espace_tf.network.network import Network

SEED = 3


def trained() -> keras.Model:
    """A network whose batch normalisations remember smooth images around 40 +- 10."""
    keras.utils.set_random_seed(SEED)
    layers = [keras.Input((16, 16, 3))]
    for filters in (8, 12):
        layers += [keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)]
        layers += [keras.layers.BatchNormalization(momentum=0.5), keras.layers.ReLU()]
    model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])
    rng = np.random.default_rng(SEED)
    for _ in range(30):
        model(40 + 10 * rng.normal(size=(16, 16, 16, 3)).astype("float32"), training=True)
    return model


def test_statistics_come_near_to_those_remembered(monkeypatch):
    monkeypatch.setattr(synthetic, "_STEPS", 60)
    network = Network.read(trained()).copied()
    before = network.model.get_weights()
    made = synthetic.synthetic_inputs(network, 16, SEED)
    assert made.shape == (16, 16, 16, 3) and made.dtype == np.float32 and np.isfinite(made).all()
    np.testing.assert_array_equal(made, synthetic.synthetic_inputs(network, 16, SEED))
    norms = {path: each for path, each in network.layers.items() if "normalization" in path}
    distance = synthetic._distance(network.model, norms)
    noise = np.random.default_rng(SEED).random((16, 16, 16, 3), np.float32)
    assert float(distance(made)) < 0.2 * float(distance(noise))
    for old, new in zip(before, network.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_nothing_to_ask_gives_nothing():
    plain = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    assert synthetic.synthetic_inputs(Network.read(plain).copied(), 4, SEED) is None
