"""Datasets for TensorFlow Datasets without a network: Fashion-MNIST, and a stand-in of ImageNet."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import resource

from espace_tf.bin.inputs.array_files import read_idx

# SHA-256 of all pixels and labels of the four files, in the order of their names.
FASHION_MNIST = "633d47d0a84f2b65c343baa9d3e7ae9b586e23017375b7cc93ac2e99f7baad7f"
# Different pictures and classes; more of them say nothing about reading and decoding.
_PICTURES, _CLASSES = 256, 8


def fashion_mnist(source: Path, data_dir: Path) -> None:
    """Prepares the dataset from files that are there, as if they had been downloaded.

    Args:
        source: the folder of the four files.
        data_dir: of TensorFlow Datasets.

    Raises:
        ValueError: the files are not those of Fashion-MNIST.
    """
    digest = hashlib.sha256()
    for path in sorted(source.glob("*.gz")):
        digest.update(read_idx(path).tobytes())
    if digest.hexdigest() != FASHION_MNIST:
        raise ValueError(f"{source} must hold Fashion-MNIST. Received: {digest.hexdigest()}")
    builder = tfds.builder("fashion_mnist", data_dir=data_dir)
    for url, info in builder.url_infos.items():
        file = source / os.path.basename(urlparse(url).path)
        target = data_dir / "downloads" / resource.get_dl_fname(url, info.checksum)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        known = {"dataset_name": "fashion_mnist", "original_fname": file.name, "url_info": info}
        resource.write_info_file(url=url, path=target, **known)
    builder.download_and_prepare()


def picture(number: int) -> bytes:
    """A JPEG file of about the size of ImageNet's, 110 kB."""
    random = np.random.default_rng(number)
    height, width = random.integers(330, 520, 2)
    y, x = np.mgrid[:height, :width] / 40
    angle = np.pi * (number % _CLASSES) / _CLASSES
    wave = np.sin(x * np.cos(angle) + y * np.sin(angle))[..., None] * random.uniform(30, 90, 3)
    pixels = np.clip(128 + wave + random.normal(0, 12, (height, width, 1)), 0, 255)
    return tf.io.encode_jpeg(pixels.astype(np.uint8), quality=93).numpy()


def multiply(folder: Path, split: str, times: int) -> None:
    """Makes a split of a prepared dataset so many times as large, with links to the files it has.

    Who reads it reads so many bytes; on the disk they lie once.

    Args:
        folder: of the version of the dataset.
        split: its name.
        times: how often each file stands there afterwards.
    """
    about = folder / "dataset_info.json"
    known = json.loads(about.read_text())
    (found,) = (each for each in known["splits"] if each["name"] == split)
    shards = sorted(folder.glob(f"*-{split}.*-of-*"))
    count = len(shards) * times
    for index in range(count):
        source = shards[index % len(shards)]
        name = source.name.split(".tfrecord-")[0]
        os.link(source, folder / f"{name}.tfrecord-{index:05d}-of-{count:05d}.new")
    for path in shards:
        path.unlink()
    for path in folder.glob("*.new"):
        path.rename(path.with_suffix(""))
    found["shardLengths"] = found["shardLengths"] * times
    found["numBytes"] = str(int(found["numBytes"]) * times)
    about.write_text(json.dumps(known, indent=2))


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The stand-in.

    Args:
        images: for training; a tenth as many, and at least 16, are for validation.
        data_dir: of TensorFlow Datasets.
    """

    VERSION = tfds.builder_cls("imagenet2012").VERSION

    def __init__(self, *, images: int, data_dir: Path):
        self._sizes = {"train": images, "validation": max(16, images // 10)}
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._generate_examples(split) for split in self._sizes}

    def _generate_examples(self, split):
        pictures = [picture(number) for number in range(min(self._sizes[split], _PICTURES))]
        for number in range(self._sizes[split]):
            kind = number % len(pictures)
            name = f"{split}_{number}.JPEG"
            yield (
                name,
                {"image": io.BytesIO(pictures[kind]), "label": kind % _CLASSES, "file_name": name},
            )
