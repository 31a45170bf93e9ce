"""A small network, and its analysis in which nothing is timed."""

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.analysis import analyze as analyzing
from espace_tf.analysis import offers
from espace_tf.analysis.analyze import analyze
from espace_tf.config import EspaceConfig
from espace_tf.timing import measure

SEED = 7
CONFIG = EspaceConfig(calibration_images=24, damage_images=8, keeps=(0.5, 0.25))
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def network(library=keras, head="softmax", seed=SEED):
    library.utils.set_random_seed(seed)
    layers, x = library.layers, library.Input((10, 10, 3))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Conv2D(12, 3, groups=2, name="second")(y)
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    units, activation = (1, None) if head == "number" else (5, head)
    return library.Model(x, layers.Dense(units, activation=activation, name="head")(y))


def samples(count=24):
    random = np.random.default_rng(SEED)
    x = random.random((count, 10, 10, 3), np.float32)
    return x, random.integers(0, 5, count)


def hurry(patch):
    """Times by multiply-accumulates: nothing is measured, results are the same every time."""
    patch.setattr(
        offers,
        "_measure",
        lambda analysis, options, *_: {option: 1e-6 * option.macs for option in options},
    )
    patch.setattr(measure, "alternate", lambda calls, **options: [1.5] * len(calls))
    patch.setattr(analyzing, "_fused", lambda *_: None)  # as without a native binary


def run(model, data, config=CONFIG, **options):
    return analyze(model, data, config=config, verbose=0, **options)


def same(one, other, tolerance=0.0):
    """Whether two analyses hold the same."""
    for name in ("fingerprint", "skipped", "model_ms", "target", "images"):
        assert getattr(one, name) == getattr(other, name), name
    assert list(one.sites) == list(other.sites)
    for path, site in one.sites.items():
        twin = other.sites[path]
        assert site.site == twin.site and site.options == twin.options
        assert site.rank_probes == twin.rank_probes and site.mask_probes == twin.mask_probes
        for name in ("kernel", "bias", *analyzing._STATISTICS):
            ours, theirs = getattr(site, name), getattr(twin, name)
            assert (ours is None) == (theirs is None), name
            if ours is not None:
                limit = tolerance * np.abs(ours).max()
                np.testing.assert_allclose(theirs, ours, rtol=0, atol=limit, err_msg=name)


def of_labelled_images():
    """The analysis of network() with samples()."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        return run(network(), samples())
