"""The loss terms against NumPy, and where the last maps are found."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.objectives import losses
from espace_tf.training.steps import distillation

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def known(kind, probabilities):
    settings = {"name": "output", "weight": 1.0, "loss": None, "library": keras}
    return losses.OutputLoss(kind=kind, probabilities=probabilities, **settings)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_output_distillation_is_the_softened_divergence(shape, probabilities, temperature):
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, *shape)) * 3
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    if probabilities:
        student, teacher = softmax(student), softmax(teacher)
    got = distillation.output_distillation(
        known("classes", probabilities),
        tf.constant(student, tf.float32),
        tf.constant(teacher, tf.float32),
        temperature,
    )
    assert float(got) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_labels_of_which_several_hold_are_distilled_one_by_one(probabilities, temperature):
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, 6, 5)) * 3
    p, q = (1 / (1 + np.exp(-z / temperature)) for z in (teacher, student))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    if probabilities:
        student, teacher = (1 / (1 + np.exp(-z)) for z in (student, teacher))
    got = distillation.output_distillation(
        known("multi-label", probabilities),
        tf.constant(student, tf.float32),
        tf.constant(teacher, tf.float32),
        temperature,
    )
    assert float(got) == pytest.approx(temperature**2 * expected.mean(), rel=1e-4)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_relative_error_is_a_ratio_of_squares(dtype):
    rng = np.random.default_rng(4)
    student, teacher = rng.normal(size=(2, 4, 5, 5, 3))
    expected = ((student - teacher) ** 2).sum() / (teacher**2).sum()
    got = distillation.relative_error(tf.cast(student, dtype), tf.cast(teacher, dtype))
    assert got.dtype == tf.float32
    assert float(got) == pytest.approx(expected, rel=1e-5 if dtype == tf.float32 else 2e-2)


def network(library, head="logits"):
    layers = library.layers
    inputs = library.Input((17, 16, 3))
    x = layers.Resizing(32, 32, name="resize")(inputs)
    x = layers.Conv2D(4, 3, 2, padding="same", name="stem")(x)
    x = layers.BatchNormalization(name="stem_bn")(x)
    left = layers.Conv2D(4, 3, padding="same", name="left")(x)
    x = layers.Add(name="add")([x, left])
    x = layers.Dropout(0.5, name="drop")(x)
    down = layers.Conv2D(6, 3, 2, padding="same", name="down")(x)
    side = layers.Conv2D(6, 1, 2, name="side")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="join")([down, side]))
    x = layers.Conv2D(6, 3, padding="valid", name="narrow")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    inner_in = library.Input(x.shape[1:])
    inner = layers.Conv2D(5, 1, name="conv")(inner_in)
    x = library.Model(inner_in, inner, name="inner")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    dense = layers.Dense(3, name="head", activation="softmax" if head == "softmax" else None)
    return library.Model(inputs, dense(x))


@LIBRARIES
def test_last_maps_stand_before_each_downsampling(library):
    model = network(library)
    ends = distillation.last_maps(model, np.ones((2, 17, 16, 3), "float32"))
    assert ends == ["add", "narrow", "inner/conv"]


@LIBRARIES
def test_last_maps_of_a_network_without_maps(library):
    model = library.Sequential([library.layers.Dense(3), library.layers.Dense(2)])
    assert distillation.last_maps(model, np.ones((2, 4), "float32")) == []


def teacher_of(model, student, loss=None, **options):
    x = np.random.default_rng(6).normal(size=(2, 17, 16, 3)).astype("float32")
    options = {"temperature": 2.0, "features": "auto", **options}
    outputs = losses.of_outputs(model, model(x), loss=loss)
    return x, distillation.Teacher(model, student, x, outputs=outputs, **options)


@LIBRARIES
@pytest.mark.parametrize("head", ["logits", "softmax"])
def test_the_teachers_terms_against_numpy(library, head):
    teacher_model, student = network(library, head), network(library, head)
    loss = "sparse_categorical_crossentropy"
    x, teacher = teacher_of(teacher_model, student, loss, features=["add", "pool"])
    with teacher.record() as calls:
        terms = teacher.terms(x, student(x, training=False), calls, len(x))

    theirs, ours = (np.asarray(m(x, training=False), "float64") for m in (teacher_model, student))
    if head == "softmax":
        theirs, ours = np.log(theirs), np.log(ours)
    p, q = softmax(theirs / 2), softmax(ours / 2)
    assert float(terms["distillation_loss"]) == pytest.approx(
        4 * (p * np.log(p / q)).sum(-1).mean(), rel=1e-3, abs=1e-6
    )
    errors = []
    for path in ("add", "pool"):
        maps = [
            np.asarray(
                library.Model(m.input, m.get_layer(path).output)(x, training=False), "float64"
            )
            for m in (student, teacher_model)
        ]
        errors.append(((maps[0] - maps[1]) ** 2).sum() / (maps[1] ** 2).sum())
    assert float(terms["feature_loss"]) == pytest.approx(np.mean(errors), rel=1e-4)


@LIBRARIES
def test_an_output_that_is_no_classification_is_compared_by_relative_error(library):
    model, student = network(library), network(library)
    x, teacher = teacher_of(model, student, "mse", features=None)
    terms = teacher.terms(x, student(x, training=False), ([], []), len(x))
    theirs, ours = (np.asarray(m(x, training=False), "float64") for m in (model, student))
    expected = ((ours - theirs) ** 2).sum() / (theirs**2).sum()
    assert set(terms) == {"distillation_loss"}
    assert float(terms["distillation_loss"]) == pytest.approx(expected, rel=1e-4)


def test_a_teacher_that_does_not_fit_is_refused():
    inputs = keras.Input((17, 16, 3))
    other = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match=r"shape for shape.*\(2, 7\).*\(2, 3\)"):
        teacher_of(other, network(keras))
    with pytest.raises(ValueError, match="features must be.*'nowhere'"):
        teacher_of(network(keras), network(keras), features=["nowhere"])
