"""Networks as other people make them, through the whole of compress and fine_tune.

Times are what the operations suggest: none is measured.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf import EspaceConfig, compress, fine_tune
from espace_tf.analysis import analyze, offers
from espace_tf.planning import search

layers = keras.layers
CONFIG = {"calibration_images": 8, "damage_images": 4, "reconstruct": 0, "rounds": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    keras.utils.set_random_seed(7)
    monkeypatch.setattr(
        offers, "_measure", lambda site, options, *_: {o: o.macs / 1e5 for o in options}
    )
    monkeypatch.setattr(analyze, "_fused", lambda *_: None)
    monkeypatch.setattr(analyze.measure, "alternate", lambda calls: [6.0])
    monkeypatch.setattr(search, "_measured_speedup", lambda *_: 1.5)


def images(count=16, size=16):
    random = np.random.default_rng(size)
    coarse = random.random((count, size // 4, size // 4, 3), np.float32)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def convolved(x, filters=12):
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    return x


def compressed(model, data, **options):
    config = EspaceConfig(
        **CONFIG | options.pop("config", {}), keeps=(0.5,), mask_families=("grid",)
    )
    small = compress(model, data, speedup=1.5, config=config, verbose=0, **options)
    assert small.espace_plan.layers and small.espace_plan.comparison.images
    assert "agreement" in str(small.espace_plan.comparison)
    return small


def of_sizes(*sizes, labels=None):
    """Batches of 8, each of another size, with the labels that a function makes of the images."""

    def numbered():
        for size in sizes:
            x = images(8, size)
            yield (x, labels(x)) if labels else x

    image = tf.TensorSpec((None, None, None, 3))
    signature = (image, tf.TensorSpec(None, tf.int64)) if labels else image
    return tf.data.Dataset.from_generator(numbered, output_signature=signature)


def classifier_of_any_size():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(convolved(inputs))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def segmenter(size=None):
    inputs = keras.Input((size, size, 3))
    x = convolved(inputs)
    y = layers.UpSampling2D()(layers.Conv2D(8, 3, padding="same")(layers.MaxPooling2D()(x)))
    x = layers.Concatenate()([x, y])
    return keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax")(x))


def brightness(x):
    return (x.mean(-1) * 2.99).astype(np.int64)


def test_any_size_is_timed_at_the_data_s_and_not_masked():
    small = compressed(classifier_of_any_size(), images())
    analysis = small.espace_analysis
    assert analysis.config.input_size == (16, 16)
    assert {site.site.output_sizes for site in analysis.sites.values()} == {((16, 16),)}
    assert all(layer.positions is None for layer in small.espace_plan.layers.values())
    assert all(layer.rank for layer in small.espace_plan.layers.values())
    assert small(images(1, 20)).shape == (1, 4)


def test_batches_of_several_sizes_and_a_size_to_time_at():
    model, data = classifier_of_any_size(), of_sizes(16, 24, 12, 16)
    small = compressed(model, data, config={"input_size": (32, 40)})
    assert {site.site.output_sizes for site in small.espace_analysis.sites.values()} == {
        ((32, 40),)
    }
    history = fine_tune(small, data, teacher=model, optimizer="sgd", verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()


def test_a_size_that_the_network_does_not_take_is_told():
    inputs = keras.Input((None, None, 3))
    x = layers.Concatenate()([inputs, layers.UpSampling2D()(layers.MaxPooling2D()(inputs))])
    model = keras.Model(inputs, layers.Conv2D(8, 3)(x))
    with pytest.raises(
        ValueError, match=r"input_size must be a size that model .* takes.*\(15, 15"
    ):
        compress(model, speedup=2, config=EspaceConfig(input_size=(15, 15)), verbose=0)


@pytest.mark.parametrize(
    "data, labels", [("one size", None), ("one size", brightness), ("several sizes", brightness)]
)
def test_segmentation(data, labels):
    model = segmenter(16 if data == "one size" else None)
    if labels:
        model.compile(loss="sparse_categorical_crossentropy", optimizer="sgd")
    sizes = (16, 16) if data == "one size" else (16, 24, 12, 16)
    data = of_sizes(*sizes, labels=labels)
    small = compressed(model, data)
    if labels:
        assert small.espace_plan.comparison.accuracy_before is not None
    assert small.espace_analysis.target == ("labels" if labels else "drawn labels")
    history = fine_tune(small, data, teacher=model, optimizer="sgd", verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()


def detector():
    """Boxes and scores at two resolutions, as lists in a dictionary."""
    inputs = keras.Input((16, 16, 3))
    maps = [convolved(inputs)]
    maps.append(layers.Conv2D(8, 3, padding="same")(layers.MaxPooling2D()(maps[0])))
    outputs = {
        "boxes": [layers.Conv2D(4, 1)(x) for x in maps],
        "scores": tuple(layers.Conv2D(2, 1, activation="sigmoid")(x) for x in maps),
    }
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("labelled", [False, True])
def test_outputs_inside_of_outputs(labelled):
    model, x = detector(), images()
    random = np.random.default_rng(0)
    y = {
        "boxes": [random.random((16, size, size, 4), np.float32) for size in (16, 8)],
        "scores": tuple(random.integers(0, 2, (16, size, size, 2)) for size in (16, 8)),
    }
    bce = "binary_crossentropy"
    model.compile(loss={"boxes": ["mse", "mse"], "scores": (bce, bce)}, optimizer="sgd")
    data = (x, y) if labelled else x
    small = compressed(model, data)
    found = small(x[:2])
    assert [each.shape[1] for each in found["boxes"]] == [16, 8]
    history = fine_tune(small, data, teacher=model, optimizer="sgd", verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()


def test_separable_convolutions_are_compressed_and_trained():
    inputs = keras.Input((16, 16, 3))
    x = layers.SeparableConv2D(32, 3, padding="same", use_bias=False)(inputs)
    x = layers.SeparableConv2D(32, 3, padding="same", activation="relu")(
        layers.BatchNormalization()(x)
    )
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    small = compressed(model, images())
    assert all("depthwise" not in path for path in small.espace_plan.layers)
    history = fine_tune(small, images(), teacher=model, optimizer="sgd", verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()


class Subclassed(keras.Model):
    """What tutorials call a custom model."""

    def __init__(self):
        super().__init__()
        self.first = layers.Conv2D(12, 3, padding="same", activation="relu")
        self.second = layers.Conv2D(12, 3, padding="same", activation="relu")
        self.pool, self.head = layers.GlobalAveragePooling2D(), layers.Dense(4)

    def call(self, x):
        return self.head(self.pool(self.second(self.first(x))))


def test_a_subclassed_model_and_a_function_of_batches():
    model, x = Subclassed(), images()
    model(x[:1])
    small = compressed(model, lambda: iter((x[:8], x[8:])))
    history = fine_tune(small, x, teacher=model, optimizer="sgd", verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()
    assert type(small).__name__ == "Functional" and small.count_params() < model.count_params()


@pytest.mark.parametrize("form", ["list", "dictionary", "alone", "alone, named in the data"])
@pytest.mark.filterwarnings("error:The structure of `inputs`")
def test_one_input_in_any_form_draws_no_warning(form):
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Flatten()(layers.BatchNormalization()(convolved(inputs)))
    given = {"list": [inputs], "dictionary": {"image": inputs}}
    model = keras.Model(given.get(form, inputs), layers.Dense(3, activation="softmax")(x))
    model.compile(loss="sparse_categorical_crossentropy")
    forms = {"alone": [images()], "alone, named in the data": {"image": images()}}
    data = (forms.get(form, images()), np.arange(16) % 3)
    small = compressed(model, data, config={"reconstruct": 1})
    fine_tune(small, data, epochs=1, teacher=model, verbose=0)
