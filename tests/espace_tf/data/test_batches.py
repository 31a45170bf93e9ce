"""User data in all its forms against plain slices of the arrays behind it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.data.batches import batches, named_inputs

X = np.arange(11 * 4, dtype=np.float32).reshape(11, 2, 2, 1)
Y = np.arange(11)


def datasets():
    return {
        "arrays": (X, Y),
        "tensors": (tf.constant(X), tf.constant(Y)),
        "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(3),
        "weighted": tf.data.Dataset.from_tensor_slices((X, Y, np.ones(11))).batch(5),
        "whole": tf.data.Dataset.from_tensors((X, Y)),
    }


@pytest.mark.parametrize("form", datasets())
@pytest.mark.parametrize("limit", [None, 1, 7, 8, 100])
@pytest.mark.parametrize("batch", [1, 4, 50])
def test_every_form_gives_the_same_batches(form, limit, batch):
    got = list(batches(datasets()[form], limit, batch))
    total = 11 if limit is None else min(limit, 11)
    assert [len(x) for x, _ in got[:-1]] == [batch] * (len(got) - 1)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in got]), X[:total])
    np.testing.assert_array_equal(np.concatenate([y for _, y in got]), Y[:total])


def test_images_without_labels_and_several_inputs():
    assert [(x.shape[0], y) for x, y in batches(X, None, 6)] == [(6, None), (5, None)]
    for x, y in batches(({"a": X, "b": X + 1}, [Y, Y]), 9, 4):
        np.testing.assert_array_equal(x["b"], x["a"] + 1)
        np.testing.assert_array_equal(*y)
    (x, _), *_ = batches([X, 2 * X], 2, 2)
    np.testing.assert_array_equal(x[1], 2 * X[:2])


def test_an_endless_dataset_is_read_no_further_than_asked():
    endless = tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(4)
    assert sum(len(x) for x, _ in batches(endless, 30, 8)) == 30


class _Tensor:
    dtype = "float32"

    def __init__(self, shape):
        self.shape = shape


@pytest.mark.parametrize(
    "data, error, words",
    [
        (X[:0], ValueError, "empty"),
        ((X[:0], Y[:0]), ValueError, "empty"),
        (tf.data.Dataset.from_tensor_slices(X[:0]).batch(2), ValueError, "empty"),
        ((X, Y[:4]), ValueError, r"equally many samples.*\[4, 11\]"),
        (X[..., 0], ValueError, r"'image' takes shape \(None, 2, 2, 1\).*\(11, 2, 2\)"),
        (X[:, :1], ValueError, r"takes shape .*Received: \(11, 1, 2, 1\)"),
        ([X, X], ValueError, "one array for each input .* 'image'. Received: 2 arrays"),
        ([X, Y], ValueError, r"labels go into a tuple, \(x, y\)"),
        ([X, Y.astype(str)], ValueError, r"labels go into a tuple, \(x, y\)"),
        ({"picture": X}, ValueError, "dictionary .* must have the keys 'image'.*: 'picture'"),
        ({"image": X, "b": X, "c": X}, ValueError, "must have the keys 'image'.*: 'image', 'b'"),
        (([[1], [1, 2]], Y), TypeError, "list of rows that make no array"),
        ((None, Y), TypeError, "Received: NoneType"),
        ((each for each in X), TypeError, r"from_generator\(.*output_signature=.*batch\(32\)"),
        (lambda: 3, TypeError, "must give batches where it is a function: .*Received: int"),
        (lambda: iter([]), ValueError, "empty"),
        (zip(X, Y, strict=True), TypeError, "from_generator"),
        (tf.data.Dataset.from_tensor_slices(X), ValueError, r"call .batch\(32\)"),
        (tf.data.Dataset.from_tensor_slices((X, np.eye(11))), ValueError, r"call .batch\(32\)"),
        ((X, Y.astype(str)), TypeError, "pictures's labels must be real numbers: .* np.unique"),
        (np.where(X == 3, np.nan, X), ValueError, "NaN"),
        (np.where(X == 3, np.inf, X), ValueError, "infinite"),
        (tf.data.Dataset.from_tensor_slices(Y), ValueError, "batch"),
        ((X, Y, Y, Y), ValueError, "tuple of 4"),
        ("images", TypeError, "str"),
        (object(), TypeError, "object"),
        ([], TypeError, "nothing"),
    ],
)
def test_bad_data_is_refused_in_words(data, error, words):
    with pytest.raises(error, match=words):
        list(batches(data, None, 20, inputs={"image": _Tensor((None, 2, 2, 1))}, name="pictures"))
    with pytest.raises(error, match="pictures"):
        list(batches(data, None, 20, inputs={"image": _Tensor((None, 2, 2, 1))}, name="pictures"))


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_inputs_are_named_as_a_dictionary_of_data_names_them(library):
    one, two = (library.Input((2, 2, 1), name=name) for name in "ab")
    total = library.layers.Add()([one, two])
    for structure, names in (([one, two], ["a", "b"]), ({"q": one, "p": two}, ["p", "q"])):
        model = library.Model(structure, total)
        assert list(named_inputs(model)) == names
        (x, _), *_ = batches(dict.fromkeys(names, X), None, 20, inputs=named_inputs(model))
        np.testing.assert_allclose(model(x), 2 * X)
    assert list(named_inputs(library.Model(one, one + 1))) == ["a"]
    assert named_inputs(library.Sequential([library.layers.Dense(2)])) is None


@pytest.mark.parametrize("options", [{"limit": 0, "batch": 1}, {"limit": 1, "batch": 0}])
def test_bad_counts_are_refused(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        list(batches(X, **options))


@pytest.mark.parametrize("form", datasets())
def test_a_model_of_a_fixed_batch_gets_no_other(form):
    inputs = {"image": _Tensor((4, 2, 2, 1))}
    for limit, sizes in ((None, [4, 4]), (1, [4]), (5, [4, 4])):
        got = list(batches(datasets()[form], limit, 16, inputs=inputs))
        assert [len(x) for x, _ in got] == sizes
        np.testing.assert_array_equal(np.concatenate([y for _, y in got]), Y[: sum(sizes)])
    with pytest.raises(ValueError, match="at least the 4 samples of the model's fixed batch"):
        list(batches(X[:3], None, 16, inputs=inputs))
