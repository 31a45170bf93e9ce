"""Data that a command line names."""

import gzip

import keras
import numpy as np
import pytest

from espace_tf.bin.inputs import array_files, datasets, pixels, sources


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(suffix, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4))
    labels = np.arange(6)
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", labels)
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", images[:3])
    found = array_files.load(tmp_path)
    np.testing.assert_allclose(found.x, images[..., None] / 255, atol=1e-7)
    assert found.x.dtype == np.float32
    np.testing.assert_array_equal(found.y, labels)
    assert found.x_test.shape == (3, 5, 4, 1)
    assert found.test is None


@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
def test_npz(names, tmp_path):
    x, y = np.random.default_rng(0).random((4, 3, 3, 2)), np.arange(4)
    np.savez(tmp_path / "a.npz", **dict(zip(names, (x, y), strict=True)), x_test=x, y_test=y)
    found = array_files.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.x, x.astype(np.float32))
    assert len(found.test) == 2
    np.savez(tmp_path / "b.npz", x=x)
    assert array_files.load(tmp_path / "b.npz").x.shape == x.shape


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.float32(3)}, "arrays of many examples. Received: one value as x."),
        (
            {"x": np.zeros((4, 3, 3, 1)), "y": 2},
            "arrays of many examples. Received: one value as y",
        ),
        (
            {"x": np.zeros((4, 3, 3, 1)), "x_test": np.zeros((4, 2, 3, 1))},
            r"of one shape. Received: \(4, 3, 3, 1\) as x, \(4, 2, 3, 1\) as x_test",
        ),
    ],
)
def test_arrays_that_do_not_go_together(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        array_files.load(tmp_path / "a.npz")


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ValueError, match="none of these"):
        array_files.load(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="no train-images"):
        array_files.load(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be read as an idx file"):
        array_files.load(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"cannot be read as an \.npz"):
        array_files.load(tmp_path / "broken.npz")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"it is an \.npy file"):
        array_files.load(tmp_path / "array.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match="must hold x"):
        array_files.load(tmp_path / "other.npz")
    np.savez(tmp_path / "uneven.npz", x=np.zeros((3, 2, 2, 1)), y=np.zeros(2))
    with pytest.raises(ValueError, match="as many labels"):
        array_files.load(tmp_path / "uneven.npz")


@pytest.mark.parametrize("kind", ["npz", "gz"])
def test_damaged_compression_is_said(kind, tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1)).astype(np.uint8)
    if kind == "npz":
        place = path = tmp_path / "a.npz"
        np.savez_compressed(path, x=numbers)
    else:
        place, path = tmp_path, tmp_path / "train-images-idx3-ubyte.gz"
        write_idx(path, numbers[..., 0])
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="cannot be read as an"):
        array_files.load(place)


def flat(*layers, shape=(6, 6, 1), dtype=None):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers, keras.layers.Flatten()])


def with_operations():
    inputs = keras.Input((6, 6, 1))
    return keras.Model(inputs, keras.layers.Flatten()(inputs / 127.5 - 1))


def normalization(mean):
    return keras.layers.Normalization(mean=[mean], variance=[1.0])


MODELS = {
    "scales": (lambda: flat(keras.layers.Rescaling(1 / 255)), 255),
    "scales symmetrically": (lambda: flat(keras.layers.Rescaling(1 / 127.5, -1)), 255),
    "after others": (
        lambda: flat(keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 255)),
        255,
    ),
    "nested": (lambda: flat(flat(keras.layers.Rescaling(1 / 255))), 255),
    "normalizes": (lambda: flat(normalization(120.0)), 255),
    "operations": (with_operations, 255),
    "integers": (lambda: flat(dtype="uint8"), 255),
    "shifts what is in [0, 1]": (lambda: flat(keras.layers.Rescaling(2.0, -1)), 1),
    "normalizes what is in [0, 1]": (lambda: flat(normalization(0.4)), 1),
    "none of these": (lambda: flat(keras.layers.Conv2D(2, 3)), 1),
}


def given_to(model, path, preprocessing):
    """The images of a file as the commands hand them to a network."""
    chosen = pixels.chosen(preprocessing, model)
    return datasets.Examples(sources.find(str(path)), model, chosen).training("train")


@pytest.mark.parametrize(("make", "largest"), MODELS.values(), ids=list(MODELS))
def test_images_are_what_the_network_was_trained_on(make, largest, tmp_path):
    model, x = make(), np.full((3, 6, 6), 255, np.uint8)
    np.savez(tmp_path / "a.npz", x=x)
    found = given_to(model, tmp_path / "a.npz", "auto")
    assert (found.shape, found.max()) == ((3, 6, 6, 1), largest)
    for name, value in (("none", 255), ("scale", 1), ("symmetric", 1)):
        asked = given_to(model, tmp_path / "a.npz", name)
        assert (asked.min(), asked.max()) == (value, value)


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1)])
@pytest.mark.parametrize("given", [(3, 6, 6), (3, 6, 6, 1)])
def test_the_axis_of_channels_is_the_networks(shape, given, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(given, np.uint8))
    assert given_to(flat(shape=shape), tmp_path / "a.npz", "auto").shape == (3, *shape)
