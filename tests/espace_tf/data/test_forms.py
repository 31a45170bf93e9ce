"""Everything that gives batches, against the arrays that they were cut from."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.data.batches import batches
from espace_tf.data.feed import Feed
from espace_tf.data.forms import understood
from espace_tf.data.sample import sample

X = np.arange(20 * 2 * 3, dtype=np.float32).reshape(20, 2, 3, 1)
Y = np.arange(20)
INPUTS = {"image": tf.TensorSpec((None, 2, 3, 1))}


def cut(start=0):
    return ((X[i : i + 8], Y[i : i + 8]) for i in range(start, 20, 8))


class Batches(keras.utils.PyDataset):
    ends = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return list(cut())[index]

    def on_epoch_end(self):
        self.ends += 1


class LegacyBatches(tf_keras.utils.Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return (*list(cut())[index], np.ones(min(8, 20 - 8 * index)))


class Loader:
    """Begins anew whenever it is iterated over, as those of PyTorch do."""

    def __iter__(self):
        return (({"image": x}, y, None) for x, y in cut())


class Method:
    def batches(self):
        return cut()


FORMS = {
    "PyDataset": Batches,
    "Sequence of tf_keras": LegacyBatches,
    "function": lambda: cut,
    "method": lambda: Method().batches,
    "loader": Loader,
    "function of samples": lambda: lambda: zip(X, Y, strict=True),
    "dataset of dictionaries": lambda: tf.data.Dataset.from_tensor_slices(
        {"image": X, "label": Y}
    ).batch(8),
    "dictionary of arrays": lambda: {"label": Y, "image": X},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_what_the_arrays_hold(form):
    data = FORMS[form]()
    for _ in range(2):  # passes are alike
        found = list(batches(data, None, 7, inputs=INPUTS))
        x, y = (np.concatenate([tf.nest.flatten(part[i])[0] for part in found]) for i in (0, 1))
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(y, Y)
    x, y = sample(data, 12, INPUTS, 0)
    x = tf.nest.flatten(x)[0]
    assert len(x) == 12 and len(set(y.tolist())) == 12
    np.testing.assert_array_equal(x, X[y])
    feed = Feed(data, 8, inputs=INPUTS)
    seen = [np.asarray(y) for _, y, *_ in feed.epoch(0)]
    assert feed.steps == (1 if form == "function of samples" else 3)  # of 32, or as they came
    np.testing.assert_array_equal(np.concatenate(seen), Y)


def test_a_pydataset_is_told_of_the_end_of_a_pass():
    data = Batches()
    found = understood(data)
    assert int(found.cardinality()) == 3 and data.ends == 0
    assert len(list(found)) == 3 and data.ends == 1


@pytest.mark.parametrize("data", [X, (X, Y), [X, X], {"image": X}, None, 3, "text", range(4)])
def test_what_is_known_or_unknown_is_handed_back(data):
    assert understood(data, INPUTS) is data


def test_more_than_one_array_beside_the_inputs_is_no_label():
    data = {"image": X, "label": Y, "number": Y}
    assert understood(data, INPUTS) is data


def test_a_generator_gives_one_pass_alone():
    with pytest.raises(TypeError, match=r"from_generator\("):
        list(batches(cut(), None, 8))
