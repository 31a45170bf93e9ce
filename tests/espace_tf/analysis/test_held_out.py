"""Held-out images: which they are, and what is compared on them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.analysis.held_out import HeldOut
from espace_tf.network.network import Network

SEED = 5


def network(head: str = "softmax", units: int = 4) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    layers = [keras.Input((6, 6, 2)), keras.layers.Conv2D(5, 3, name="conv")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(units, activation=head, name="out")]
    return keras.Sequential(layers)


def samples(count: int):
    rng = np.random.default_rng(SEED)
    return 0.3 * rng.normal(size=(count, 6, 6, 2)).astype("float32"), rng.integers(0, 4, count)


def changed(model: keras.Model) -> keras.Model:
    other = keras.models.clone_model(model)
    rng = np.random.default_rng(SEED)
    other.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in model.get_weights()])
    return other


@pytest.mark.parametrize(
    ("images", "calibration", "seen", "held"),
    [(100, 50, 50, 50), (100, 90, 80, 20), (700, 100, 100, 512), (40, 512, 32, 8), (3, 512, 3, 3)],
)
def test_images_that_the_statistics_do_not_see_are_held_out(images, calibration, seen, held):
    model, (x, _) = network(), samples(images)
    dataset = tf.data.Dataset.from_tensor_slices(x).shuffle(images).batch(7)
    for data in (x, x.tolist(), dataset):
        found = HeldOut(Network.read(model), data, None, calibration, 0)
        assert found.seen == seen and found.compare(model).images == held
        judged, known = np.concatenate(found._inputs), found.data[:seen]
        rows = {image.tobytes() for image in judged.astype("float32")}
        shared = rows & {image.tobytes() for image in known.astype("float32")}
        assert len(rows) == held and len(shared) == (held if held == seen == images else 0)
        assert rows <= {image.tobytes() for image in x}


def test_a_fixed_batch_gets_whole_batches():
    layers = [keras.layers.Conv2D(5, 3), keras.layers.Flatten(), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input(batch_shape=(16, 6, 6, 2)), *layers])
    found = HeldOut(Network.read(model), samples(100)[0], None, 512, 0)
    assert (found.seen, found.compare(model).images) == (64, 32)


def test_images_sorted_by_class_are_mixed():
    x, y = samples(120)[0], np.repeat(np.arange(4), 30)
    found = HeldOut(Network.read(network()), (x, y), None, 60, 0)
    assert set(found.data[1][:60]) == set(found.data[1][60:]) == {0, 1, 2, 3}


def test_classes_with_labels():
    model, (x, y) = network(), samples(60)
    held = HeldOut(Network.read(model), (x, y), None, 30, 0)
    same = held.compare(model)
    assert (same.loss_increase, same.agreement) == (pytest.approx(0, abs=1e-6), 1.0)
    other, (x, y) = changed(model), (part[30:] for part in held.data)
    seen = held.compare(other)
    p, q = (each.predict(x, verbose=0).astype(float) for each in (model, other))
    divergence = (p * (np.log(p) - np.log(q))).sum(-1).mean()
    rows = np.arange(len(y))
    grown = (np.log(p[rows, y]) - np.log(q[rows, y])).mean()
    assert seen.loss_increase == pytest.approx(max(divergence, grown), rel=1e-4)
    assert seen.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert seen.accuracy_before == pytest.approx((p.argmax(-1) == y).mean())
    assert seen.accuracy_after == pytest.approx((q.argmax(-1) == y).mean())


def test_values_are_compared_by_their_cosine():
    model, (x, _) = network("linear", 3), samples(40)
    model.compile(loss="mse")
    held, other = HeldOut(Network.read(model), x, None, 20, 0), changed(model)
    seen = held.compare(other)
    a, b = (each.predict(held.data[20:], verbose=0).astype(float) for each in (model, other))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert seen.agreement == pytest.approx(cosine.mean(), rel=1e-5)
    assert seen.accuracy_before is None and seen.loss_increase > 0
