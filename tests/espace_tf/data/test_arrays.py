"""Everything that np.asarray takes, by position; arrays on disk; what tells data apart."""

import array

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.data.arrays import as_arrays, count, describe, is_on_disk
from espace_tf.data.batches import batches
from espace_tf.data.feed import Feed

X = np.arange(11 * 4, dtype=np.float32).reshape(11, 2, 2, 1)
Y = np.arange(11)


class Disk:
    """An array of which only slices can be read, as of a file; counts what is."""

    def __init__(self, values, most):
        self.values, self.most, self.read = values, most, 0
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        found = self.values[rows]
        assert len(found) <= self.most, "too much at once"
        self.read += len(found)
        return found


class Labelled:
    """As a pandas Series: brackets go by the label of a row, of which slices alone do not."""

    iloc = None

    def __init__(self, values, index):
        self.values, self.rows = values, dict(zip(index, values, strict=True))
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, labels):
        if isinstance(labels, slice):
            return self.values[labels]
        return np.array([self.rows[label] for label in labels])

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def labels(form, values):
    mixed = np.random.default_rng(3).permutation(len(values))
    if form.startswith("pandas"):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"label": values}, index=mixed + 100)
        return {"pandas series": frame["label"], "pandas frame": frame}[form]
    return {
        "list": values.tolist(),
        "list of rows": values[:, None].tolist(),
        "array.array": array.array("q", values.tolist()),
        "tensor": tf.constant(values),
        "variable": keras.Variable(values),
        "shuffled index": Labelled(values, mixed),
        "index of a split": Labelled(values, mixed + 100),
    }[form]


FORMS = ["list", "list of rows", "array.array", "tensor", "variable"]
LABELLED = ["shuffled index", "index of a split", "pandas series", "pandas frame"]


@pytest.mark.parametrize("form", [*FORMS, *LABELLED])
def test_labels_are_those_of_their_images(form):
    data = X, labels(form, Y)
    assert count(data) == 11
    for x, y, _ in Feed(data, 4, seed=1).epoch(0):
        np.testing.assert_array_equal(np.ravel(y) * 4, x[:, 0, 0, 0])
    for x, y in batches(data, None, 4):
        np.testing.assert_array_equal(np.ravel(y) * 4, x[:, 0, 0, 0])
    weighted = (X, Y, labels(form, Y + 0))
    assert all(np.array_equal(y, np.ravel(w)) for _, y, w in Feed(weighted, 4, seed=1).epoch(0))
    assert describe(data) == describe((X, labels(form, Y)))


def test_several_outputs_and_none():
    several = {"a": Y, "b": [Y, Y.tolist()], "c": None}
    found = as_arrays((X, several))[1]
    assert found["c"] is None and all(np.array_equal(each, Y) for each in (*found["b"], found["a"]))
    assert [len(x) for x, y in batches((X, None), None, 6) if y is None] == [6, 5]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_arrays_on_disk_are_read_in_blocks(seed, monkeypatch):
    monkeypatch.setattr("espace_tf.data.feed._HELD_BYTES", 1)
    values = np.arange(103 * 2, dtype=np.float32).reshape(103, 2)
    x, y = Disk(values, 16), Disk(np.arange(103), 16)
    feed, orders = Feed((x, y), 4, seed=seed), []
    assert feed.labels is None and feed.steps == (26 if seed is None else 25)
    x.read = 0
    for epoch in (0, 1):
        got = list(feed.epoch(epoch))
        assert len(got) == feed.steps
        for inputs, classes, _ in got:
            np.testing.assert_array_equal(inputs, values[classes])
        order = np.concatenate([classes for _, classes, _ in got])
        assert len(set(order)) == len(order) == (103 if seed is None else 100)
        later = list(feed.epoch(epoch, start=9))
        assert all(map(np.array_equal, [y for _, y, _ in later], [y for _, y, _ in got[9:]]))
        orders.append(tuple(order))
    assert (orders[0] == orders[1] == tuple(range(103))) == (seed is None)
    assert x.read <= 4 * 103
    assert [len(found) for found, _ in batches((x, y), 20, 8)] == [8, 8, 4]
    assert describe(Disk(values, 64)) == describe(values)


def test_files_of_other_libraries(tmp_path):
    np.save(tmp_path / "x.npy", X)
    forms = [np.load(tmp_path / "x.npy", mmap_mode="r")]
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        forms.append(file.create_dataset("x", data=X))
        for form in forms:
            assert is_on_disk(form)
            for x, y, _ in Feed((form, Y), 4, seed=2).epoch(0):
                np.testing.assert_array_equal(x, X[y])
            assert describe(form) == describe(X)
    assert not any(map(is_on_disk, (X, tf.constant(X), X[::2])))


def test_count():
    assert count((X, Y)) == count(X) == count([X, X]) == 11
    data = tf.data.Dataset.from_tensor_slices(X)
    assert count(data.batch(5, drop_remainder=True)) == 10
    assert count(data.batch(5)) is None


def test_description_tells_data_apart():
    texts = [describe(data) for data in (None, X, X + 1, (X, Y), (X, Y + 1), X[:5])]
    assert len(set(texts)) == len(texts)
    assert describe((X, Y)) == describe((X.copy(), Y.copy()))


def test_description_tells_datasets_apart():
    def dataset(x):
        return tf.data.Dataset.from_tensor_slices(x).batch(4)

    texts = [describe(dataset(each)) for each in (X, X + 1, X[:8])]
    assert len(set(texts)) == 3
    assert describe(dataset(X)) == describe(dataset(X.copy()))
    fixed = tf.data.Dataset.from_tensor_slices(X).shuffle(11, 3, reshuffle_each_iteration=False)
    assert describe(fixed.batch(4)) is not None
    assert describe(tf.data.Dataset.from_tensor_slices(X).shuffle(11, 3).batch(4)) is None
