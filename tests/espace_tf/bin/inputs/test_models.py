"""Model files of every form that people have."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.bin.inputs import models

ROOT = Path(__file__).parents[4]
FORMS = [
    (keras, "a.keras", keras),
    (keras, "a.h5", keras),
    (tf_keras, "a.keras", tf_keras),
    (tf_keras, "a.h5", keras),
    (tf_keras, "a.hdf5", keras),
    (tf_keras, "folder", tf_keras),
]
IDS = [f"{library.__name__}-{name}" for library, name, _ in FORMS]
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def network(library, loss):
    layers = library.layers
    model = library.Sequential(
        [
            library.Input((6, 6, 2)),
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.compile("sgd", loss)
    return model


def own_loss(y, values):
    return 0.0


def save(model, path):
    options = {"save_format": "h5"} if path.suffix == ".hdf5" else {}
    model.save(path, **options)


@pytest.mark.parametrize(("library", "name", "read_by"), FORMS, ids=IDS)
def test_forms_are_read_by_keras_3_where_it_can(library, name, read_by, tmp_path):
    model, x = network(library, "mse"), np.ones((2, 6, 6, 2), np.float32)
    save(model, tmp_path / name)
    found = models.load(tmp_path / name)
    assert isinstance(found, read_by.Model)
    np.testing.assert_allclose(found(x), model(x), atol=1e-6)


@pytest.mark.parametrize(("library", "name", "read_by"), FORMS, ids=IDS)
def test_a_loss_that_is_not_known_is_done_without(library, name, read_by, tmp_path):
    save(network(library, own_loss), tmp_path / name)
    assert isinstance(models.load(tmp_path / name), read_by.Model)


def test_convolutions_that_keras_3_knows_no_groups_of(tmp_path):
    layers = tf_keras.layers
    x = inputs = layers.Input((6, 7, 2))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.SeparableConv2D(3, 2, name="separable")(x)
    x = layers.Conv2DTranspose(4, 3, name="transposed")(x)
    model, path = tf_keras.Model(inputs, x), tmp_path / "old.h5"
    model.save(path)
    found, images = models.load(path), np.random.default_rng(0).random((2, 6, 7, 2), np.float32)
    np.testing.assert_allclose(found([images]), model(images), atol=1e-6)
    classes = keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D
    classes += (keras.layers.Conv2DTranspose,)
    assert tuple(type(layer) for layer in found.layers[1:]) == classes


def test_what_was_read_with_keras_3_is_written_for_the_plain_import(tmp_path):
    save(network(tf_keras, "mse"), tmp_path / "old.h5")
    models.load(tmp_path / "old.h5").save(tmp_path / "new.keras")
    program = f"import keras; keras.models.load_model({str(tmp_path / 'new.keras')!r})"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["bad.keras", "bad.h5", "bad.hdf5"])
def test_what_is_no_model_is_said(name, tmp_path):
    (tmp_path / name).write_text("no model")
    with pytest.raises(ValueError, match="cannot be read: it does not begin like"):
        models.load(tmp_path / name)


def test_folders_and_files_of_other_kinds(tmp_path):
    for path in (tmp_path, tmp_path / "missing.keras", tmp_path / "a.onnx"):
        with pytest.raises(ValueError, match="the folder of a SavedModel. Received"):
            models.check(path)
    (tmp_path / "saved_model.pb").write_text("no model")
    with pytest.raises(ValueError, match="cannot be read"):
        models.load(tmp_path)
