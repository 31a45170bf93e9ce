"""Images for benchmarks that train: Fashion-MNIST, or a TensorFlow Dataset such as ImageNet."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.bin.inputs import array_files

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_SUBSET = Path(__file__).parents[1] / "demo" / "fashion_mnist_subset.npz"
FASHION = str(_DEBIAN if _DEBIAN.is_dir() else _SUBSET)
SCALINGS = ("unit", "none", "caffe", "tf", "torch")
_BATCH = 32  # images per batch of evaluations
_SHUFFLED = 2048  # images that a TensorFlow Dataset is shuffled among; its files are shuffled too


@dataclass(frozen=True, eq=False)
class Images:
    """Training images in one shuffled order, and two splits to judge on.

    Args:
        train: shuffled training examples, not decoded; the same order in every pass.
        decode: an element of train -> (image, label).
        train_images: how many.
        holdout: batches (x, y) of training images that are never trained on.
        test: batches (x, y) of held-out images.
        holdout_images, test_images: how many.
        classes: labels are 0 ... classes - 1.
    """

    train: tf.data.Dataset
    decode: Callable[..., tuple[tf.Tensor, tf.Tensor]]
    train_images: int
    holdout: tf.data.Dataset
    holdout_images: int
    test: tf.data.Dataset
    test_images: int
    classes: int

    def calibration(self, images: int) -> tuple[np.ndarray, np.ndarray]:
        """Arrays (x, y) of the first so many training images, as they are."""
        batch = next(iter(self.train.map(self.decode).batch(images)))
        return batch[0].numpy(), batch[1].numpy()

    def window(self, number: Any, images: int, batch: int, seed: int) -> tf.data.Dataset:
        """Batches of the number-th run of so many training images, flipped at random.

        The same number always gives the same batches.

        Args:
            number: an integer, or a variable that is read when a pass begins.
            images: in a run; what fills no batch is left out.
            batch: images per batch.
            seed: of the flips.
        """
        endless = self.train.repeat().enumerate()

        def run(_):
            return endless.skip(tf.cast(number, tf.int64) * images).take(images)

        def load(index, raw):
            x, y = self.decode(*raw)
            state = tf.stack([tf.cast(seed, tf.int64), index])
            return tf.image.stateless_random_flip_left_right(x, state), y

        found = tf.data.Dataset.from_tensors(0).flat_map(run)
        found = found.map(load, num_parallel_calls=2, deterministic=True)
        found = found.batch(batch, drop_remainder=True)
        return found.apply(tf.data.experimental.assert_cardinality(images // batch)).prefetch(2)


def fashion(source: str, *, holdout: int, test_images: int, seed: int) -> Images:
    """Fashion-MNIST, or other labelled arrays that `espace_tf.bin.inputs.array_files.load` reads.

    Args:
        source: an .npz file or a folder of idx files.
        holdout: how many of the last training images to judge on while training.
        test_images: how many held-out images to judge on in the end, at most.
        seed: of the order.

    Raises:
        ValueError: not readable, without labels or held-out images, or fewer images than that.
    """
    data = array_files.load(source)
    if data.y is None or data.test is None:
        raise ValueError(f"--data must hold labels and held-out images. Received: {source!r}")
    kept = len(data.x) - holdout
    if kept < 1:
        raise ValueError(
            f"--holdout must be below the {len(data.x)} training images. Received: {holdout}"
        )
    x, y = tf.constant(data.x), tf.constant(data.y.astype(np.int64))
    order = np.random.default_rng(seed).permutation(kept)

    def batches(images, labels):
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(_BATCH)

    test = (data.x_test[:test_images], data.y_test[:test_images].astype(np.int64))
    return Images(
        train=tf.data.Dataset.from_tensor_slices((order,)),
        decode=lambda index: (tf.gather(x, index), tf.gather(y, index)),
        train_images=kept,
        holdout=batches(x[kept:], y[kept:]),
        holdout_images=holdout,
        test=batches(*test),
        test_images=len(test[0]),
        classes=int(data.y.max()) + 1,
    )


def tfds_images(
    name: str,
    data_dir: str | None,
    model: keras.Model,
    *,
    scaling: str,
    holdout: int,
    test_images: int,
    seed: int,
) -> Images:
    """A prepared TensorFlow Dataset of images with one label each, for a network that is given.

    Images are resized so that the shorter side is 8/7 of the network's input (256 for 224), and the
    middle is cut out. Judged on is the split "validation" (ImageNet's labelled one), else "test".

    Args:
        name: as `tensorflow_datasets.builder` knows it.
        data_dir: the folder that it was prepared in; None: the library's own.
        model: decides the size and the channels.
        scaling: "unit" for [0, 1], "none" for [0, 255], else a mode of
            `keras.applications.imagenet_utils.preprocess_input`.
        holdout, test_images, seed: as for `fashion`.

    Raises:
        ValueError: not installed, not prepared, without such splits, or too few images.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"--dataset={name} needs tensorflow-datasets: pip install espace_tf[tfds]"
        ) from error
    decode = _decoder(tuple(model.inputs[0].shape[1:]), scaling)
    with _in_words(name):
        builder = tfds.builder(name, data_dir=data_dir)
        sizes = {key: split.num_examples for key, split in builder.info.splits.items()}
        judged, kept = "validation" if "validation" in sizes else "test", sizes["train"] - holdout
        tested = min(test_images, sizes[judged])
    if kept < 1:
        raise ValueError(
            f"--holdout must be below the {sizes['train']} training images. Received: {holdout}"
        )
    parts = {"train": f"train[:{kept}]", "holdout": f"train[{kept}:]"}
    parts["test"] = f"{judged}[:{tested}]"
    options = {
        "read_config": tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        "decoders": {"image": tfds.decode.SkipDecoding()},
    }
    with _in_words(name):
        found = {
            key: builder.as_dataset(split=part, **options).map(lambda x: (x["image"], x["label"]))
            for key, part in parts.items()
        }
    return Images(
        train=found["train"].shuffle(_SHUFFLED, seed=seed, reshuffle_each_iteration=False),
        decode=decode,
        train_images=kept,
        holdout=found["holdout"].map(decode, num_parallel_calls=2).batch(_BATCH),
        holdout_images=holdout,
        test=found["test"].map(decode, num_parallel_calls=2).batch(_BATCH),
        test_images=tested,
        classes=builder.info.features["label"].num_classes,
    )


@contextlib.contextmanager
def _in_words(name: str) -> Iterator[None]:
    """Turns what a TensorFlow Dataset raises into a ValueError that says what to do."""
    try:
        yield
    except Exception as error:  # Each kind of dataset raises its own.
        raise ValueError(
            f"--dataset={name} cannot be read ({type(error).__name__}: {error}): prepare it with "
            f"tfds.builder({name!r}, data_dir=...).download_and_prepare(), and name its --data_dir"
        ) from error


def _decoder(shape: tuple[int, ...], scaling: str) -> Callable:
    """Encoded image, label -> image of this shape [H, W, C], label."""
    if len(shape) != 3 or None in shape:
        raise ValueError(f"--model must take images of one fixed size. It takes: {shape}")
    height, width, channels = shape

    def decode(encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        wanted = tf.constant([height, width], tf.float32) * (8 / 7)
        size = tf.cast(tf.math.ceil(size * tf.reduce_max(wanted / size)), tf.int32)
        image = tf.image.resize(tf.cast(image, tf.float32), size)
        image = tf.image.resize_with_crop_or_pad(image, height, width)
        if scaling == "unit":
            image /= 255.0
        elif scaling != "none":
            image = keras.applications.imagenet_utils.preprocess_input(image, mode=scaling)
        return tf.ensure_shape(image, shape), tf.cast(label, tf.int64)

    return decode


def smooth_noise(shape: tuple[int, int, int], images: int, seed: int) -> np.ndarray:
    """[images, H, W, C] random images in [0, 1] as smooth as photographs are: blurred noise."""
    coarse = np.random.default_rng(seed).normal(0.5, 0.25, (images, 14, 14, shape[2]))
    return np.clip(tf.image.resize(coarse.astype(np.float32), shape[:2]).numpy(), 0, 1)
