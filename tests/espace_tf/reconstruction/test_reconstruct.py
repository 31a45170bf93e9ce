"""reconstruct: closed form against NumPy, never worse on held-out images, every kind of model."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from espace_tf import LayerPlan, Plan, apply, reconstruct
from espace_tf.network import graph, recording
from espace_tf.numerics.refit import refit
from espace_tf.reconstruction import closed_form
from espace_tf.reconstruction.closed_form import refit_layers

SEED = 5


def images(count: int = 64, size: int = 10, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    coarse = rng.normal(size=(count, 3, 3, channels)).astype(np.float32)
    return tf.image.resize(coarse, (size, size)).numpy() + 0.1 * rng.normal(
        size=(count, size, size, channels)
    ).astype(np.float32)


def network(dtype: str = "float32", **first) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    with_policy = {"dtype": dtype}
    x = inputs = keras.Input((10, 10, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a", **with_policy, **first)(x)
    x = layers.ReLU()(layers.BatchNormalization(**with_policy)(x))
    x = layers.Conv2D(8, 3, padding="same", groups=2, name="grouped", **with_policy)(x)
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, name="each", **with_policy)(x)
    x = layers.Conv2D(12, 3, activation="relu", name="b", **with_policy)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="head", dtype="float32")(x))


def compressed(model: keras.Model, keep: float = 0.5) -> keras.Model:
    return apply(model, Plan.uniform(model, rank_ratio=0.4, keep=keep))


def responses(model, x: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray]:
    with recording.record(model, [path]) as calls:
        model(x)
    return calls[0].inputs.numpy(), calls[0].outputs.numpy()


def test_a_layer_gets_the_least_squares_solution_of_numpy(monkeypatch):
    keras.utils.set_random_seed(SEED)
    first = layers.Conv2D(6, 3, name="first")
    model = keras.Sequential([keras.Input((8, 8, 3)), first, layers.Conv2D(4, 3, name="second")])
    small = apply(model, Plan(layers={"first": LayerPlan(rank=2)}))
    x = images(160, 8)
    monkeypatch.setattr(closed_form, "_ROWS", 10_000)  # every position
    monkeypatch.setattr(closed_form, "refit", functools.partial(refit, noises=(0.0,)))
    assert refit_layers(small, model, x, 120, seed=0) == 2
    for path, layer in graph.layers(small).items():
        _, wanted = responses(model, x, path)
        read, found = responses(small, x, path)
        if path == "first":  # what its second kernel reads, by loops of NumPy
            read = np.stack(
                [
                    np.einsum("bhwc,hck->bwk", read[:, y : y + 3], layer.first_kernel[:, 0])
                    for y in range(6)
                ],
                1,
            )
            patches = np.stack([read[:, :, t : t + 6] for t in range(3)], 3)
        else:
            places = [(y, t) for y in range(3) for t in range(3)]
            patches = np.stack([read[:, y : y + 4, t : t + 4] for y, t in places], 3)
        patches = patches[:120].reshape(-1, np.prod(patches.shape[3:])).astype(np.float64)
        patches = np.hstack([patches, np.ones((len(patches), 1))])
        target = wanted[:120].reshape(len(patches), -1).astype(np.float64)
        best = patches @ np.linalg.lstsq(patches, target, rcond=1e-5)[0]
        least = np.square(best - target).sum()
        assert np.square(found[:120].reshape(target.shape) - target).sum() <= 1.001 * least, path


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_answers_come_closer_and_nothing_else_changes(seconds, capsys, monkeypatch):
    monkeypatch.setattr(
        "espace_tf.reconstruction.reconstruct._LATE", 1e3
    )  # the same steps on a busy machine
    model, x = network(), images()
    small = compressed(model)
    before, plan = model.get_weights(), small.espace_plan
    found = reconstruct(small, x, teacher=model, seconds=seconds)
    assert found.after < 0.7 * found.before
    assert "on 16 images set aside" in capsys.readouterr().out
    assert all(map(np.array_equal, before, model.get_weights()))
    assert small.espace_plan is plan
    again = compressed(model)
    assert reconstruct(again, x, teacher=model, seconds=seconds, verbose=0) == pytest.approx(found)
    answers = small(x, training=False).numpy()
    begun = small(x, training=True).numpy()  # where a training would begin
    assert np.linalg.norm(begun - answers) < 0.05 * np.linalg.norm(answers)


def test_what_is_worse_on_images_set_aside_is_undone(monkeypatch):
    model, x = network(), images(40)
    small = compressed(model)
    before = small.get_weights()

    def spoiled(student, *_):
        student.set_weights([weight + 1 for weight in student.get_weights()])

    monkeypatch.setattr("espace_tf.reconstruction.reconstruct.refit_layers", spoiled)
    found = reconstruct(small, x, teacher=model, seconds=0, verbose=0)
    assert found.after == found.before
    assert all(map(np.array_equal, before, small.get_weights()))


def test_frozen_layers_and_layers_called_twice_stay():
    keras.utils.set_random_seed(SEED)
    inputs = keras.Input((10, 10, 3))
    twice = layers.Conv2D(3, 3, padding="same", name="twice")
    inner = keras.Sequential([keras.Input((10, 10, 3)), layers.Conv2D(6, 3, name="own")])
    x = inner(twice(twice(inputs)))
    x = layers.Conv2D(4, 3, trainable=False, name="frozen")(x)
    outputs = {"map": x, "score": layers.Dense(2, activation="softmax")(layers.Flatten()(x))}
    model = keras.Model(inputs, outputs)
    small, x = apply(model, Plan.uniform(model, rank_ratio=0.4)), images(32)
    known = graph.layers(small)
    before = {path: layer.get_weights() for path, layer in known.items()}
    assert refit_layers(small, model, x, 24, seed=0) >= 1
    for path, layer in known.items():
        same = all(map(np.array_equal, before[path], layer.get_weights()))
        assert same or path not in ("twice", "frozen"), path
    found = reconstruct(small, x, teacher=model, seconds=0.5, verbose=0)
    assert found.after <= found.before
    assert all(map(np.array_equal, before["frozen"], known["frozen"].get_weights()))


def test_half_precision_learns_too():
    model, x = network("mixed_float16"), images()
    small = compressed(model)
    found = reconstruct(small, x, teacher=model, seconds=0.3, verbose=0)
    assert found.after < found.before
    assert all(np.isfinite(weight).all() for weight in small.get_weights())


def test_a_handful_of_images_does_no_harm():
    model = network()
    for count in (1, 3):
        small, x = compressed(model), images(count)
        found = reconstruct(small, (x, np.zeros(count)), teacher=model, seconds=0, verbose=0)
        assert found.after <= found.before


def test_legacy_models_fixed_batches_and_open_sizes():
    import tf_keras

    for library, shape in ((tf_keras, (10, 10, 3)), (keras, (None, None, 3))):
        inputs = library.layers.Input(shape)
        x = library.layers.Conv2D(6, 3, activation="relu")(inputs)
        x = library.layers.GlobalAveragePooling2D()(library.layers.Conv2D(6, 3)(x))
        model = library.Model(inputs, x)
        small = apply(model, Plan.uniform(model, rank_ratio=0.3))
        found = reconstruct(small, images(40), teacher=model, seconds=0.2, verbose=0)
        assert found.after < found.before
    inputs = keras.Input((10, 10, 3), batch_size=4)
    model = keras.Model(inputs, layers.Conv2D(6, 3)(layers.Conv2D(6, 3)(inputs)))
    small = apply(model, Plan.uniform(model, rank_ratio=0.3))
    found = reconstruct(small, images(18), teacher=model, seconds=0.2, verbose=0)
    assert found.after <= found.before


def test_refuses_what_makes_no_sense():
    model, x = network(), images(8)
    small = compressed(model)
    with pytest.raises(ValueError, match="teacher must be another model"):
        reconstruct(model, x, teacher=model)
    with pytest.raises(ValueError, match="seconds must be at least 0"):
        reconstruct(small, x, teacher=model, seconds=-1)
    with pytest.raises(TypeError, match="teacher must be a keras.Model"):
        reconstruct(small, x, teacher="model")
    other = keras.Sequential([keras.Input((10, 10, 3)), layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="teacher must have the model's outputs"):
        reconstruct(small, x, teacher=other)
