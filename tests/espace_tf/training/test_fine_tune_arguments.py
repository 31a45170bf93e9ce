"""What fine_tune refuses, in words and before any work."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from finetuning_networks import LIBRARIES, network, task

from espace_tf.schedules import PolynomialDecay
from espace_tf.training import fine_tune as finetuning
from espace_tf.training.fine_tune import fine_tune

NAN = float("nan")


class NoData:
    """Data that must not be looked at."""

    def __getattr__(self, name):
        raise AssertionError(f"work began before the arguments were checked: {name}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": "a"}, "epochs must be an integer. Received: 'a'"),
        ({"epochs": 0}, "epochs must be at least 1. Received: 0"),
        ({"epochs": -1}, "epochs must be at least 1. Received: -1"),
        ({"epochs": 1.5}, "epochs must be an integer. Received: 1.5"),
        ({"epochs": True}, "epochs must be an integer. Received: True"),
        ({"epochs": None}, "epochs must be an integer. Received: None"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": "8"}, "batch_size must be an integer. Received: '8'"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"batch_norm_batches": -1}, "batch_norm_batches must be at least 0"),
        ({"batch_norm_batches": NAN}, "batch_norm_batches must be an integer. Received: nan"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be at most 4294967295. Received: 4294967296"),
        ({"seed": None}, "seed must be an integer"),
        ({"temperature": "a"}, "temperature must be a finite number. Received: 'a'"),
        ({"temperature": 0}, "temperature must be between 0.001 and 1000.0. Received: 0"),
        ({"temperature": NAN}, "temperature must be a finite number. Received: nan"),
        ({"distillation_weight": -0.5}, "distillation_weight must be at least 0"),
        ({"feature_weight": NAN}, "feature_weight must be a finite number"),
        ({"features": 3}, 'features must be "auto", None or a list of layer paths. Received: 3'),
        ({"features": [3]}, "features must be"),
        ({"schedule": "x"}, "schedule must be 'gradual', None, or a function.* Received: 'x'"),
        ({"schedule": 0.5}, "schedule must be"),
        ({"callbacks": "tensorboard"}, "callbacks must be a list of Keras callbacks"),
        ({"callbacks": [3]}, "callbacks must be a list of Keras callbacks"),
        (
            {"callbacks": [keras.callbacks.BackupAndRestore("kept")]},
            "callbacks must not hold BackupAndRestore.* give checkpoint_dir='kept'",
        ),
        ({"keep_best": 1}, "keep_best must be True or False. Received: 1"),
        ({"train_frozen": None}, "train_frozen must be True or False. Received: None"),
        ({"verbose": "loud"}, "verbose must be one of 0, 1, 2. Received: 'loud'"),
        ({"optimizer": "zzz"}, "optimizer must be one of keras.optimizers.* Received: 'zzz'"),
        ({"optimizer": 0.1}, "optimizer must be one of keras.optimizers.* Received: 0.1"),
        ({"optimizer": tf_keras.optimizers.SGD()}, "optimizer must be one of keras.optimizers"),
        ({"optimizer": keras.optimizers.SGD(-1.0)}, "learning_rate must be at least 0.* -1.0"),
        ({"optimizer": keras.optimizers.Adam(NAN)}, "learning_rate must be a finite number.* nan"),
    ],
)
def test_scalars_are_refused_before_the_data_is_looked_at(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fine_tune(network(keras), NoData(), **{"verbose": 0, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": (np.zeros((0, 12, 12, 1)), np.zeros(0))}, "empty|equally"),
        ({"data": np.zeros((4, 12, 12, 1), "float32")}, "labels.*no teacher.*teacher="),
        ({"data": (np.zeros((4, 9, 9, 1)), np.zeros(4))}, "takes shape"),
        ({"data": (np.zeros((4, 12, 12, 1)), np.zeros((4, 2)))}, "loss must be given"),
        ({"validation_data": np.zeros((2, 9, 9, 1))}, "validation_data must .*takes shape"),
        ({"validation_data": np.zeros((2, 12, 12, 1))}, "validation_data must hold labels"),
        ({"validation_data": "x"}, "validation_data must be a tf.data.Dataset"),
        (
            {"metrics": ["zzz"]},
            r"metrics and labels .* Received: .*metrics=\['zzz'\], labels",
        ),
        ({"loss": "zzz"}, "loss must be as in compile.*Received: 'zzz'"),
        ({"schedule": PolynomialDecay(end_step=3)}, "needs a model with masked layers"),
        ({"teacher": "itself"}, "teacher must be another model"),
        ({"teacher": "m.keras"}, "teacher must be a keras.Model or .* Received: str"),
        ({"teacher": "larger"}, r"teacher must take the model's inputs.*\(None, 14, 14, 1\)"),
        ({"teacher": "other"}, "shape for shape"),
        ({"teacher": "dense", "features": "zzz"}, "features must be .* Received: 'zzz'; the mod"),
        ({"teacher": "dense", "features": ["conv1", "zzz"]}, "features must be .* 'zzz'"),
    ],
)
def test_arguments_that_make_no_sense(options, words, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(finetuning.Loop, "run", refuse)
    model = network(keras)
    options = {"data": task(8), "verbose": 0, **options}
    teachers = {"itself": model, "other": network(keras, outputs=2), "dense": network(keras)}
    teachers["larger"] = keras.Sequential([keras.Input((14, 14, 1)), keras.layers.Flatten()])
    if "teacher" in options:
        options["teacher"] = teachers.get(options["teacher"], options["teacher"])
    with pytest.raises((TypeError, ValueError), match=words):
        fine_tune(model, options.pop("data"), **options)


def test_metrics_beside_a_compiled_model_need_a_loss():
    model = network(keras)
    model.compile(loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="metrics must be given together with loss"):
        fine_tune(model, task(8), metrics=["accuracy"], verbose=0)


def losses(library):
    return {
        "sparse": library.losses.SparseCategoricalCrossentropy(from_logits=True, name="mine"),
        "one-hot": library.losses.CategoricalCrossentropy(from_logits=True),
    }


@LIBRARIES
@pytest.mark.parametrize(
    ("change", "loss", "words"),
    [
        (lambda y: np.where(y == 0, 4, y), None, "from 0 to 3. Received: 1 to 4"),
        (lambda y: y - 1, "sparse", "from 0 to 3. Received: -1 to 2"),
        (lambda y: y + 0.5, "sparse", r"must be whole numbers, classes. Received: \d.5"),
        (lambda y: y * NAN, "sparse", "must be whole numbers, classes. Received: nan"),
        (lambda y: y.astype(str), "sparse", "labels must be real numbers: .*dtype (str|object)"),
        (lambda y: y.astype(object), None, "labels must be real numbers: .*dtype object"),
        (lambda y: np.eye(4)[y], "sparse", r"class numbers, of shape \(B\) .*argmax"),
        (lambda y: y, "one-hot", r"one-hot, of the outputs' shape \(B, 4\).*Sparse"),
        (lambda y: np.eye(5)[y], "one-hot", r"one-hot, of the outputs' shape .*\(\d, 5\)$"),
    ],
)
@pytest.mark.parametrize("form", ["arrays", "dataset", "validation"])
def test_labels_that_are_no_classes(library, change, loss, words, form):
    (x, y), model = task(8), network(library)
    data = x, change(y)
    if form == "dataset":
        if data[1].dtype == object:
            pytest.skip("TensorFlow itself refuses them")
        data = tf.data.Dataset.from_tensor_slices(data).batch(8)
    options = {"loss": losses(library).get(loss), "batch_size": 8, "verbose": 0}
    given = {"data": data} if form != "validation" else {"data": (x, y), "validation_data": data}
    if form == "validation" and loss == "one-hot":
        given["data"] = x, np.eye(4)[y]
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        fine_tune(model, given.pop("data"), **given, **options)
    name = "validation_data" if form == "validation" else "data"
    assert f"{name}'s labels must" in str(caught.value)


def test_a_bad_label_deep_in_the_data():
    x, y = task(24)
    y[20] = 9
    with pytest.raises(ValueError, match="from 0 to 3. Received: 0 to 9"):
        fine_tune(network(keras), (x, y), batch_size=4, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model = network(keras)
    with pytest.raises(ValueError, match="epoch 1, batch 6: data's labels .* to 9"):
        options = {"optimizer": "adam", "keep_best": False, "verbose": 0}
        fine_tune(model, data, checkpoint_every=1, **options)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@LIBRARIES
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64", "float16", "bool"])
def test_inputs_of_every_kind_of_number_train_alike(library, dtype):
    x, y = task(16)
    x = (x > 0).astype(dtype)
    found = []
    for images in (x, x.astype("float32")):
        library.utils.set_random_seed(1)
        model = network(library)
        history = fine_tune(model, (images, y), batch_size=8, verbose=0).history
        found.append([history["loss"], *model.get_weights()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@LIBRARIES
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_one_hot_labels_need_no_loss_and_train_as_class_numbers(library, dtype):
    x, y = task(16)
    found = []
    for labels in (y, np.eye(4, dtype=dtype)[y]):
        library.utils.set_random_seed(1)
        model = network(library)
        history = fine_tune(model, (x, labels), batch_size=8, verbose=0).history
        found.append([history["loss"], history["accuracy"], *model.get_weights()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_ignored_classes_are_no_mistake():
    x, y = task(16)
    y[:4] = -1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    history = fine_tune(network(keras), (x, y), loss=loss, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_a_schedule_that_leaves_its_range():
    model = network(keras, compressed=True)
    for value in (1.5, -0.1, NAN):
        with pytest.raises(ValueError, match="schedule must give a fade from 0 "):
            fine_tune(model, task(8), schedule=lambda step, value=value: value, verbose=0)
    for value in ("0.5", None, [0.5, 0.5]):
        with pytest.raises(TypeError, match="schedule must give a fade .* Received: "):
            fine_tune(model, task(8), schedule=lambda step, value=value: value, verbose=0)
    assert all(getattr(layer, "fade", None) is None for layer in model.layers)


def test_a_model_with_nothing_to_train():
    model = network(keras)
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights"):
        fine_tune(model, task(8), verbose=0)
