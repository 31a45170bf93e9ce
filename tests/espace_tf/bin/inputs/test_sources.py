"""Datasets by name, and what a network gets of them."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks.stand_ins import Imagenet2012, picture
from espace_tf.bin.inputs import datasets, networks, pixels, sources

SEED = 3


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """ImageNet's stand-in, 40 images for training and 16 to judge."""
    folder = tmp_path_factory.mktemp("tfds")
    Imagenet2012(images=40, data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image files, those of class a red, of b blue, of different sizes."""
    path = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in (("a", (200, 10, 0)), ("b", (0, 20, 220))):
            (path / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (40 + number, 30), colour)
                image.save(path / split / name / f"{number}.{'jpg' if number % 2 else 'png'}")
    return path


def network(shape=(24, 24, 3), values="none"):
    return networks.build("resnet20", shape, 4, values)


def examples(source, preprocessing="imagenet", model=None, **options):
    model = model or network()
    chosen = pixels.chosen(preprocessing, model)
    return datasets.Examples(source, model, chosen, batch_size=8, **options)


def test_imagenet_is_streamed_as_bytes_until_the_network_has_them(data_dir):
    source = sources.find("imagenet2012", data_dir=str(data_dir))
    assert (source.sizes, source.classes) == ({"train": 40, "validation": 16}, 1000)
    assert (source.held_out(), source.encoded, source.arrays) == ("validation", True, None)
    assert source.count("train[:50%]") == 20
    model = network(values="mean_std")
    found = examples(source, model=model)
    assert str(found.preprocessing) == "imagenet+none"  # the network's first layer does it
    stream = found.training("train")
    assert stream.element_spec[0] == tf.TensorSpec((8, 24, 24, 3), tf.uint8)
    assert int(stream.cardinality()) == 5
    values = model.get_layer("values")(np.full((1, 1, 1, 3), 255, np.uint8))
    expected = (1 - np.array(pixels.MEAN)) / np.array(pixels.DEVIATION)
    np.testing.assert_allclose(np.ravel(values), expected, rtol=1e-5)


@pytest.mark.parametrize("split", ["train[:0]", "train[5:5]+train[:0]", "nowhere", "train[a:]"])
def test_a_part_that_is_not_there_or_empty_is_refused(data_dir, split):
    source = sources.find("imagenet2012", data_dir=str(data_dir))
    with pytest.raises(ValueError, match="a split (must hold|of imagenet2012 must)"):
        source.count(split)


def test_an_epoch_is_the_same_whenever_it_is_read_and_another_one_is_not(data_dir):
    found = examples(sources.find("imagenet2012:5.*.*", data_dir=str(data_dir)), seed=SEED)
    stream = found.training("train")
    passes = []
    for epoch in (0, 1, 0):
        tf.random.set_seed(epoch)
        found.epoch.assign(epoch)
        passes.append(
            [np.concatenate(part) for part in zip(*stream.as_numpy_iterator(), strict=True)]
        )
    for first, again in zip(passes[0], passes[2], strict=True):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(passes[0][1], passes[1][1])
    assert sorted(passes[0][1]) == sorted(passes[1][1])
    rest = [labels for _, labels in stream.skip(3).as_numpy_iterator()]
    np.testing.assert_array_equal(np.concatenate(rest), passes[0][1][24:])


def test_the_middle_of_an_image_is_what_pillow_cuts_and_resizes():
    image = np.asarray(Image.open(io.BytesIO(picture(1))))
    height, width, _ = image.shape
    side = round(0.875 * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    expected = tf.image.resize(image[top : top + side, left : left + side], (24, 24))
    # Of a file TensorFlow's decoder rounds otherwise.
    for given, tolerance in ((image, 0.51), (picture(1), 8)):
        found = pixels.centre_crop(tf.constant(given), (24, 24), 3)
        apart = np.abs(found.numpy().astype(float) - expected.numpy())
        assert apart.max() <= tolerance and apart.mean() <= 1


@pytest.mark.parametrize("flip", [True, False])
def test_random_crops_keep_area_and_aspect_and_are_flipped_half_of_the_time(flip):
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    crops = [
        pixels.training_crop(tf.constant(ramp), tf.constant([SEED, number], tf.int64), (8, 8), 3)
        for number in range(40)
    ]
    rising = [int(crop[0, -1, 0]) > int(crop[0, 0, 0]) for crop in crops]
    assert 8 < sum(rising if flip else np.logical_not(rising)) < 32
    widths = [abs(int(crop[0, -1, 0]) - int(crop[0, 0, 0])) * 8 / 7 for crop in crops]
    # Of an area of .08 to 1 of 100 x 200 with an aspect of 3/4 to 4/3, at most 100 high.
    assert min(widths) > 0.9 * np.sqrt(0.08 * 20000 * 3 / 4) and max(widths) < 1.1 * 400 / 3
    assert len({round(width) for width in widths}) > 10


def test_a_folder_of_images(folder):
    source = sources.find(f"folder:{folder}")
    assert (source.sizes, source.classes) == ({"train": 12, "val": 4}, 2)
    assert source.held_out() == "val"
    images, labels = next(iter(examples(source).held_out("val")))
    assert images.shape == (4, 24, 24, 3)
    for image, label in zip(images.numpy(), labels.numpy(), strict=True):
        assert (image.mean((0, 1)).argmax() == 0) == (label == 0)
    flat = sources.find(f"folder:{folder / 'train'}")
    assert flat.sizes == {"train": 12}
    labels = np.concatenate([y for _, y in examples(flat).training("train[:50%]")])
    assert set(labels) == {0, 1}  # mixed, whatever the order of files
    with pytest.raises(ValueError, match="imagenet cuts and resizes"):
        examples(source, "scale")


def test_values_of_caffe_reverse_the_channels():
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    expected = keras.applications.resnet50.preprocess_input(pixel.astype(np.float32))
    np.testing.assert_allclose(pixels.as_values(pixel, "caffe"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("resnet50", "caffe"),
        ("resnet50v2", "symmetric"),
        ("mobilenetv2_1.00_224", "symmetric"),
        ("densenet121", "mean_std"),
        ("mine", "mean_std"),
    ],
)
def test_values_are_what_a_network_of_that_name_was_trained_on(name, values):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()], name=name)
    assert str(pixels.chosen("imagenet", model)) == f"imagenet+{values}"
    assert str(pixels.chosen("imagenet+scale", model)) == "imagenet+scale"
    assert pixels.chosen("auto", model).values == ("scale" if name == "mine" else values)


def test_parts_of_splits():
    sizes = {"train": 10, "test": 3}
    found = sources.rows("train[:20%]+test[-1:]+train[8:]", sizes)
    assert [(split, list(each)) for split, each in found] == [
        ("train", [0, 1]), ("test", [2]), ("train", [8, 9])]  # fmt: skip
    for wrong in ("valid", "train[:", "train[5:5]", "train[a:]", ""):
        with pytest.raises(ValueError, match="a split must"):
            sources.rows(wrong, sizes)


def test_arrays_stay_bytes_for_a_network_that_scales(tmp_path):
    x = np.random.default_rng(SEED).integers(0, 256, (10, 24, 24, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(10), x_test=x[:3])
    source = sources.find(str(tmp_path / "a.npz"))
    assert (source.sizes, source.classes) == ({"train": 10, "test": 3}, 10)
    images, labels = examples(source, "auto", network(values="scale")).training("train[5:]")
    np.testing.assert_array_equal(images, x[5:])
    np.testing.assert_array_equal(labels, np.arange(5, 10))
    scaled = examples(source, "auto").held_out("test")  # without labels
    np.testing.assert_allclose(scaled, x[:3] / 255, atol=1e-6)
    crops = next(iter(examples(source, "imagenet+symmetric").training("train")))[0].numpy()
    assert crops.dtype == np.float32 and crops.min() < -0.5 and crops.max() <= 1
    np.savez(tmp_path / "grey.npz", x=x[..., 0], y=np.arange(10))
    grey = examples(sources.find(str(tmp_path / "grey.npz")), model=network((24, 24, 1)))
    assert next(iter(grey.training("train")))[0].shape == (8, 24, 24, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_data_set", "--dataset=no_such_data_set cannot be read"),
        ("imagenet2012:9.9.9", "cannot be read"),
        ("Nothing/at/all.txt", "which is none of these"),
        ("folder:nowhere", "must name a folder"),
        ("missing.npz", "none of these"),
    ],
)
def test_what_is_not_there_is_said_without_a_network(name, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        sources.find(name, data_dir=str(tmp_path))
