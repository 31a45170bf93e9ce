"""A named dataset as a network takes it: arrays, or a stream of batches from files."""

from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.bin.inputs import broken_files, pixels
from espace_tf.bin.inputs.array_files import as_images, in_rank
from espace_tf.bin.inputs.pixels import Preprocessing
from espace_tf.bin.inputs.sources import Source

# Of examples that are held in memory to draw from.
_SHUFFLED_BYTES = 2**28


class Examples:
    """What a network is trained and judged on.

    Arrays stay arrays, unless they are cropped; everything else is a stream that is read, decoded
    and cropped while the network computes. 8-bit images stay so until the network gets them, unless
    their values are to change, which is the last thing that is done.

    Args:
        source: where they come from.
        model: the Keras model that takes them, of one input.
        preprocessing: what is done to them.
        seed: of order and crops.
        buffer: examples of a stream to draw from.
        batch_size: of a stream.

    Attributes:
        epoch: a variable; the order and the crops of a training stream depend on it.

    Raises:
        ValueError: images that do not fit the network.
    """

    def __init__(
        self,
        source: Source,
        model: Any,
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        buffer: int = 10_000,
        batch_size: int = 32,
    ):
        self.source, self.model, self.preprocessing = source, model, preprocessing
        self.seed, self.batch_size = seed, batch_size
        self.buffer = max(1, min(buffer, _SHUFFLED_BYTES // source.bytes))
        with tf.device("CPU:0"):  # where datasets compute
            self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        shape = tuple(model.inputs[0].shape)[1:]
        self.in_memory = source.arrays is not None and not preprocessing.crops
        if not self.in_memory:
            self._size, self._channels = _geometry(shape, source, preprocessing)

    def training(self, split: str) -> Any:
        """Arrays, or batches in an order and with crops that the seed and `epoch` decide."""
        return self._arrays(split) if self.in_memory else self._stream(split, random=True)

    def held_out(self, split: str) -> Any:
        """Arrays, or batches in order, with crops of the middle."""
        return self._arrays(split) if self.in_memory else self._stream(split, random=False)

    def _arrays(self, split: str) -> Any:
        images, labels = self.source.arrays(split)
        images = in_rank(images, self.model)
        if images.dtype == np.uint8 and self.preprocessing.values in ("mean_std", "caffe"):
            images = np.asarray(pixels.as_values(images, self.preprocessing.values))
        images = as_images(images, self.preprocessing.values)
        return images if labels is None else (images, labels)

    def _stream(self, split: str, random: bool) -> tf.data.Dataset:
        examples, count = self.source.examples(split), self.source.count(split)
        if random:
            examples = self._in_order_of_epoch(examples)
        else:
            zeros = tf.data.Dataset.from_tensors((np.int64(self.seed), np.int64(0))).repeat()
            examples = tf.data.Dataset.zip(zeros, examples)

        def prepare(seed: Any, example: Any) -> Any:
            image, *labels = example if isinstance(example, tuple) else (example,)
            found = self._prepared(image, tf.stack(seed), random)
            return (found, *labels) if labels else found

        found = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        found = found.apply(tf.data.experimental.assert_cardinality(count))
        # Of a batch that is not full its network would be traced once more.
        found = found.batch(self.batch_size, drop_remainder=random and count >= self.batch_size)
        if self.preprocessing.values != "none":
            found = found.map(self._with_values, num_parallel_calls=tf.data.AUTOTUNE)
        return found.prefetch(tf.data.AUTOTUNE)

    def _in_order_of_epoch(self, examples: tf.data.Dataset) -> tf.data.Dataset:
        """((epoch's seed, number), example) in an order of the epoch, read when a pass begins."""

        def passed(_: Any) -> tf.data.Dataset:
            # Of this graph alone: where the process's seed is 0, shuffle takes no tensor.
            tf.compat.v1.set_random_seed(1)
            epoch = self.epoch.read_value()
            seed = epoch * 1_000_003 + self.seed
            mixed = examples.shuffle(self.buffer, seed=seed, reshuffle_each_iteration=False)
            numbers = tf.data.Dataset.counter(dtype=tf.int64)
            seeds = tf.data.Dataset.zip(tf.data.Dataset.from_tensors(seed).repeat(), numbers)
            return tf.data.Dataset.zip(seeds, mixed)

        return tf.data.Dataset.from_tensors(0).flat_map(passed)

    def _prepared(self, image: tf.Tensor, seed: tf.Tensor, random: bool) -> tf.Tensor:
        """One image of the network's size."""
        if self.source.paths:
            return broken_files.watched(image, lambda content: self._cut(content, seed, random))
        return self._cut(image, seed, random)

    def _cut(self, image: tf.Tensor, seed: tf.Tensor, random: bool) -> tf.Tensor:
        """One image, pixels or the content of a file, of the network's size."""
        if not self.preprocessing.crops:
            return pixels.decoded(image, self._channels) if self.source.encoded else image
        if not self.source.encoded and image.dtype != tf.uint8:
            raise ValueError(
                "--preprocessing=imagenet crops 8-bit images. Received: images of "
                f"{image.dtype.name} in {self.source.name}"
            )
        if random:
            return pixels.training_crop(image, seed, self._size, self._channels)
        return pixels.centre_crop(image, self._size, self._channels)

    def _with_values(self, images: tf.Tensor, *labels: tf.Tensor) -> Any:
        if images.dtype == tf.uint8:
            images = pixels.as_values(images, self.preprocessing.values)
        return (images, *labels) if labels else images


def _geometry(
    shape: tuple[int | None, ...], source: Source, preprocessing: Preprocessing
) -> tuple[tuple[int, int], int]:
    """The size and channels of the images that a network with this input gets."""
    if len(shape) != 3 or shape[2] is None:
        raise ValueError(f"--model must take images, [height, width, channels]. Received: {shape}")
    height, width, channels = shape
    if preprocessing.crops:
        if None in (height, width):
            raise ValueError(
                "--preprocessing=imagenet needs a network whose input has a size. Received: "
                f"{shape}"
            )
        return (height, width), channels
    fits = all(
        want in (None, got) for want, got in zip((height, width), source.shape, strict=False)
    )
    if not fits or None in source.shape[:2]:
        raise ValueError(
            f"--dataset={source.name} has images of {source.shape}, the network takes {shape}: "
            "--preprocessing=imagenet cuts and resizes them"
        )
    return source.shape[:2], channels
