"""What becomes of images between their files and a network: sizes, crops, values."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.bin.inputs.array_files import preprocesses

# The mean and standard deviation of ImageNet's training images, red, green, blue, in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The means that Caffe's networks subtract from blue, green, red in [0, 255].
CAFFE_MEAN = (103.939, 116.779, 123.68)
VALUES = ("none", "scale", "symmetric", "mean_std", "caffe")
# Of a network judged on crops in the middle, the side of the crop over the shorter side: 224 / 256.
_CENTRE = 0.875
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to images.

    Attributes:
        crops: whether they are cropped to the network's size, as in the training on ImageNet.
        values: what becomes of 8-bit values, one of VALUES.
    """

    crops: bool
    values: str

    def __str__(self) -> str:
        return f"imagenet+{self.values}" if self.crops else self.values


def chosen(text: str, model: Any = None, name: str | None = None) -> Preprocessing:
    """What --preprocessing means for a network.

    Args:
        text: "auto", "imagenet", one of VALUES, or "imagenet+" and one of VALUES.
        model: the Keras model, which may bring images to its values itself; None: not known.
        name: of the network; None: the model's.

    Raises:
        ValueError: another text.
    """
    first, *rest = text.split("+")
    crops = first == "imagenet"
    values = (rest or ["auto"])[0] if crops else first
    if len(rest) > int(crops) or values not in ("auto", *VALUES):
        raise ValueError(
            f"--preprocessing must be auto, {', '.join(VALUES)}, imagenet, or imagenet+ and one of "
            f"these. Received: {text!r}"
        )
    if values != "auto":
        return Preprocessing(crops, values)
    if model is not None and preprocesses(model):
        return Preprocessing(crops, "none")
    wanted = _of_application(name or getattr(model, "name", ""))
    return Preprocessing(crops, wanted or ("mean_std" if crops else "scale"))


def _of_application(name: str) -> str | None:
    """The values that a network of keras.applications was trained on; None of another one.

    What its preprocess_input does to black and white says which.
    """
    wanted = "".join(letter for letter in name.lower() if letter.isalnum())
    members = {
        member.lower(): module.preprocess_input
        for module in vars(keras.applications).values()
        if hasattr(module, "preprocess_input")
        for member in vars(module)
        if member[:1].isupper() and wanted.startswith(member.lower())
    }
    if not members:
        return None
    ends = np.stack([np.zeros((1, 1, 3)), np.full((1, 1, 3), 255.0)])
    found = members[max(members, key=len)](ends.copy())
    alike = (each for each in VALUES if np.allclose(found, as_values(ends, each), atol=0.05))
    return next(alike, None)


def as_values(images: Any, values: str) -> Any:
    """8-bit images [..., C] as float32 of other values; unchanged of "none"."""
    if values == "none":
        return images
    images = tf.cast(images, tf.float32)
    scale, offset = affine(values, images.shape[-1])
    if values == "caffe":
        images = images[..., ::-1]
    return images * scale + offset


def affine(values: str, channels: int) -> tuple[Any, Any]:
    """(scale, offset) that bring values in [0, 255] to others; of each channel, or of all.

    Raises:
        ValueError: values of colours for another number of channels.
    """
    if values in ("mean_std", "caffe"):
        if channels not in (1, 3):
            raise ValueError(f"--preprocessing={values} is for 3 channels. Received: {channels}")
        mean, deviation = np.array(MEAN) * 255, np.array(DEVIATION) * 255
        if values == "caffe":
            mean, deviation = np.array(CAFFE_MEAN), np.ones(3)
        if channels == 1:
            mean, deviation = mean.mean(keepdims=True), deviation.mean(keepdims=True)
        return (1 / deviation).astype(np.float32), (-mean / deviation).astype(np.float32)
    scale = {"none": 1.0, "scale": 1 / 255, "symmetric": 2 / 255}[values]
    return np.float32(scale), np.float32(-1.0 if values == "symmetric" else 0.0)


def decoded(image: tf.Tensor, channels: int) -> tf.Tensor:
    """The content of an image file as uint8 [H, W, channels]."""
    found = tf.io.decode_image(image, channels=channels, expand_animations=False)
    return tf.ensure_shape(found, (None, None, channels))


def training_crop(
    image: tf.Tensor, seed: tf.Tensor, size: tuple[int, int], channels: int
) -> tf.Tensor:
    """A random crop of an image, resized, and flipped half of the time.

    The crop has 8 to 100 % of the area and an aspect of 3/4 to 4/3 (Szegedy et al., 2015). Of a
    JPEG file only the crop is decoded.

    Args:
        image: the content of a file, or uint8 [H, W, channels].
        seed: int64 [2]; equal seeds give equal crops.
        size: (height, width) of the result.
        channels: of the result.

    Returns:
        uint8 [height, width, channels].
    """

    def box(shape: tf.Tensor) -> tf.Tensor:
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.cast(shape, tf.int32),
            tf.zeros((1, 0, 4)),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=_ASPECT,
            area_range=_AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], extent[:2]], 0)

    found = _resized(_cropped(image, box, channels), size, channels)
    flips = tf.random.stateless_uniform((), seed + 1) < 0.5
    return tf.cond(flips, lambda: found[:, ::-1], lambda: found)


def centre_crop(image: tf.Tensor, size: tuple[int, int], channels: int) -> tf.Tensor:
    """The middle of an image, 7/8 of its shorter side, resized; see `training_crop`."""

    def box(shape: tf.Tensor) -> tf.Tensor:
        height, width = (tf.cast(shape[axis], tf.float32) for axis in (0, 1))
        side = _CENTRE * tf.minimum(height / size[0], width / size[1])
        extent = tf.cast(tf.round([side * size[0], side * size[1]]), tf.int32)
        extent = tf.maximum(extent, 1)
        return tf.concat([(tf.cast(shape[:2], tf.int32) - extent) // 2, extent], 0)

    return _resized(_cropped(image, box, channels), size, channels)


def _cropped(image: tf.Tensor, box: Any, channels: int) -> tf.Tensor:
    """The part [y, x, height, width] that `box` finds for the image's shape."""

    def of_pixels(pixels: tf.Tensor) -> tf.Tensor:
        top, left, height, width = tf.unstack(box(tf.shape(pixels)), num=4)
        return pixels[top : top + height, left : left + width]

    if image.dtype != tf.string:
        return of_pixels(image)

    def of_jpeg() -> tf.Tensor:
        window = box(tf.io.extract_jpeg_shape(image))
        return tf.image.decode_and_crop_jpeg(image, window, channels=channels)

    return tf.cond(tf.io.is_jpeg(image), of_jpeg, lambda: of_pixels(decoded(image, channels)))


def _resized(image: tf.Tensor, size: tuple[int, int], channels: int) -> tf.Tensor:
    found = tf.clip_by_value(tf.round(tf.image.resize(image, size)), 0, 255)
    return tf.ensure_shape(tf.cast(found, tf.uint8), (*size, channels))
