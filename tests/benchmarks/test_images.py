"""The images of benchmarks that train, against what went in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import images

SEED = 8


def arrays(folder, count: int):
    """An .npz of 5 x 4 images whose first pixel is their number; labels are number % 3."""
    generator = np.random.default_rng(SEED)
    x = generator.integers(0, 256, (count, 5, 4, 1), np.uint8)
    x[:, 0, 0, 0] = np.arange(count)
    np.savez(
        folder / "data.npz", x=x, y=np.arange(count) % 3, x_test=x[:7], y_test=np.arange(7) % 3
    )
    return x.astype(np.float32) / 255


def read(dataset) -> tuple[np.ndarray, np.ndarray]:
    found = list(dataset.as_numpy_iterator())
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def test_windows_are_runs_of_one_order_without_the_images_held_back(tmp_path):
    x = arrays(tmp_path, 50)
    made = images.fashion(str(tmp_path / "data.npz"), holdout=10, test_images=5, seed=3)
    assert (made.train_images, made.holdout_images, made.test_images) == (40, 10, 5)
    number = tf.Variable(0, dtype=tf.int64)
    window = made.window(number, 20, 6, seed=1)
    assert int(window.cardinality()) == 3
    parts = []
    for index in (0, 1, 2):
        number.assign(index)
        images_read, labels = read(window)
        again, _ = read(window)
        np.testing.assert_array_equal(images_read, again)
        parts.append(labels)
        for image, label in zip(images_read, labels, strict=True):
            mirrored = image[:, ::-1]
            same = [(x == each).all(axis=(1, 2, 3)) for each in (image, mirrored)]
            (original,) = np.flatnonzero(same[0] | same[1])
            assert original < 40 and original % 3 == label, f"seed {SEED}"
    assert all(len(labels) == 18 for labels in parts)
    np.testing.assert_array_equal(parts[0], parts[2])  # 40 images are two runs of 20
    assert (parts[0] != parts[1]).any()
    np.testing.assert_array_equal(read(made.holdout)[0], x[40:])
    np.testing.assert_array_equal(read(made.test)[0], x[:5])
    first, labels = made.calibration(40)
    order = np.rint(first[:, 0, 0, 0] * 255).astype(int)
    assert sorted(order) == list(range(40))
    np.testing.assert_array_equal(order % 3, labels)


def test_a_holdout_that_leaves_nothing_is_refused(tmp_path):
    arrays(tmp_path, 20)
    with pytest.raises(ValueError, match="--holdout must be below the 20.*Received: 20"):
        images.fashion(str(tmp_path / "data.npz"), holdout=20, test_images=5, seed=0)


def tfds_on_disk(folder, images_of) -> None:
    """A TensorFlow Dataset "little" of PNG files."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png")}
    features["label"] = tfds.features.ClassLabel(num_classes=4)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="little",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: [(i, {"image": image, "label": i % 4}) for i, image in enumerate(made)]
            for split, made in images_of.items()
        },
        data_dir=str(folder),
        disable_shuffling=True,
    )


@pytest.mark.slow
def test_a_tensorflow_dataset_is_resized_cut_and_scaled(tmp_path):
    generator = np.random.default_rng(SEED)
    sizes = {"train": 12, "validation": 6}
    made = {
        split: [generator.integers(0, 256, (16, 24, 3), np.uint8) for _ in range(count)]
        for split, count in sizes.items()
    }
    tfds_on_disk(tmp_path, made)
    model = keras.Sequential([keras.Input((14, 14, 3)), keras.layers.Flatten()])
    options = {"holdout": 4, "test_images": 5, "seed": 0}
    for scaling in ("unit", "caffe"):
        found = images.tfds_images("little", str(tmp_path), model, scaling=scaling, **options)
        assert (found.train_images, found.test_images, found.classes) == (8, 5, 4)
        x, y = read(found.test)
        assert y.tolist() == [0, 1, 2, 3, 0]
        for image, original in zip(x, made["validation"], strict=False):
            # 14 * 8 / 7 is 16, the shorter side: nothing is resized, 14 x 14 are cut out.
            middle = original[1:15, 5:19].astype(np.float32)
            expected = middle / 255 if scaling == "unit" else middle[..., ::-1] - MEANS
            np.testing.assert_allclose(image, expected, atol=1e-4, err_msg=f"seed {SEED}")
        assert read(found.holdout)[1].tolist() == [0, 1, 2, 3]
        assert sorted(found.calibration(8)[1].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len(read(found.window(5, 4, 2, seed=0))[1]) == 4
    with pytest.raises(ValueError, match="--holdout must be below the 12"):
        images.tfds_images(
            *("little", str(tmp_path), model), **{**options, "holdout": 12}, scaling="unit"
        )
    with pytest.raises(ValueError, match="--dataset=gone cannot be read"):
        images.tfds_images("gone", str(tmp_path), model, scaling="unit", **options)


MEANS = np.array([103.939, 116.779, 123.68], np.float32)  # blue, green, red of ImageNet


def test_smooth_noise_is_smooth_and_seeded():
    found = images.smooth_noise((56, 56, 3), 4, seed=1)
    assert found.shape == (4, 56, 56, 3) and found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(found, images.smooth_noise((56, 56, 3), 4, seed=1))
    assert np.abs(np.diff(found, axis=1)).mean() < 0.3 * found.std()
