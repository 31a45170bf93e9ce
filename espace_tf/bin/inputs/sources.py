"""Datasets by the names that a command line gives them, as labelled images one after the other."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.bin.inputs import array_files

FORMS = (
    "an .npz file, a folder of idx files as MNIST comes in, folder:PATH with images in one folder "
    "a class, or the name of a prepared TensorFlow Dataset, NAME[/CONFIG][:VERSION]"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_NAME = re.compile(r"[a-z]\w*(/[\w.+-]+)*(:[\w.*]+)?")
_PART = re.compile(r"(?P<split>\w+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_HELD_OUT = ("validation", "val", "test")


@dataclass(frozen=True)
class Source:
    """A dataset as examples in a fixed order.

    Attributes:
        name: as given.
        sizes: how many examples each split has.
        classes: how many labels there are; None if they are no classes, or not known.
        shape: (height, width, channels) of the images, None where they differ.
        encoded: whether images are JPEG, PNG, BMP or GIF, as tf.string.
        paths: whether these are not the content of files but their paths.
        bytes: of a typical example as it is read.
        examples: of a split, in the syntax of TensorFlow Datasets, (image, label) or image.
        count: how many examples that split has.
        arrays: of a split, (images, labels or None), where all are in memory.
    """

    name: str
    sizes: Mapping[str, int]
    classes: int | None
    shape: tuple[int | None, ...]
    encoded: bool
    bytes: int
    examples: Callable[[str], tf.data.Dataset] = field(repr=False)
    count: Callable[[str], int] = field(repr=False)
    arrays: Callable[[str], tuple[Any, Any]] | None = field(default=None, repr=False)
    paths: bool = False

    def held_out(self) -> str | None:
        """The split to judge on; None if there is none."""
        return next((name for name in _HELD_OUT if name in self.sizes), None)


def find(name: str, *, data_dir: str | None = None, download: bool = False) -> Source:
    """The dataset that a command line names.

    Args:
        name: an .npz file (keys x or x_train; optional y or y_train, x_test, y_test), a folder of
            MNIST-like idx files, "folder:PATH" with train/CLASS/*.jpg and validation/CLASS/*.jpg
            or CLASS/*.jpg, or a name that `tensorflow_datasets` knows.
        data_dir: where TensorFlow Datasets are; None: where they are by default.
        download: whether one that is not there may be downloaded and prepared.

    Raises:
        ValueError: nothing is there, or in another form.
    """
    if name.startswith("folder:"):
        return _folder(name, Path(name.removeprefix("folder:")))
    if name.endswith(".npz") or Path(name).is_dir():
        return _in_memory(name)
    if not _NAME.fullmatch(name):
        raise ValueError(f"--dataset must be {FORMS}. Received: {name!r}, which is none of these")
    return _tfds(name, data_dir, download)


def rows(split: str, sizes: Mapping[str, int]) -> list[tuple[str, np.ndarray]]:
    """Which examples of which splits a text in the syntax of TensorFlow Datasets means.

    Args:
        split: such as "train", "train[:90%]", "train[100:]+test".
        sizes: how many examples each split has.

    Raises:
        ValueError: another syntax, a split that is not there, or nothing in it.

    Example:
        >>> rows("train[:50%]+test[-1:]", {"train": 4, "test": 3})
        [('train', array([0, 1])), ('test', array([2]))]
    """
    found = []
    for part in split.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None or match["split"] not in sizes:
            raise ValueError(
                f"a split must be one of {', '.join(sizes)}, or a part of it as in train[:90%]. "
                f"Received: {split!r}"
            )
        size = sizes[match["split"]]
        bounds = (_bound(match[each], size) for each in ("start", "stop"))
        found.append((match["split"], np.arange(size)[slice(*bounds)]))
    if not sum(len(each) for _, each in found):
        raise _empty(split)
    return found


def _bound(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)


def _in_memory(name: str) -> Source:
    """Arrays of an .npz file, or of idx files."""
    held = array_files.read(name)
    parts = {"train": ("x", "y"), "test": ("x_test", "y_test")}
    parts = {split: keys for split, keys in parts.items() if held.get(keys[0]) is not None}
    sizes = {split: len(held[x]) for split, (x, _) in parts.items()}
    if not sizes["train"]:
        raise ValueError(f"--dataset={name} must hold examples. Received: none, as x")

    def pick(split: str) -> tuple[Any, Any]:
        chosen = rows(split, sizes)
        images = np.concatenate([held[parts[each][0]][some] for each, some in chosen])
        labels = [held.get(parts[each][1]) for each, _ in chosen]
        if any(each is None for each in labels):
            return images, None
        pairs = zip(labels, chosen, strict=True)
        return images, np.concatenate([each[some] for each, (_, some) in pairs])

    def examples(split: str) -> tf.data.Dataset:
        images, labels = pick(split)
        images = images[..., None] if images.ndim == 3 else images  # grey
        return tf.data.Dataset.from_tensor_slices(images if labels is None else (images, labels))

    labels = held.get("y")
    known = labels is not None and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    known = known and labels.min() >= 0
    shape = held["x"].shape[1:]
    return Source(
        name,
        sizes,
        classes=int(labels.max()) + 1 if known else None,
        shape=shape if len(shape) != 2 else (*shape, 1),
        encoded=False,
        bytes=held["x"][:1].nbytes,
        examples=examples,
        count=lambda split: sum(len(each) for _, each in rows(split, sizes)),
        arrays=pick,
    )


def _empty(split: str) -> ValueError:
    return ValueError(f"a split must hold examples. Received: {split!r}, which holds none")


def _folder(name: str, path: Path) -> Source:
    """Image files, the name of whose folder is their class."""
    if not path.is_dir():
        raise ValueError(f"--dataset={name} must name a folder. Received: {str(path)!r}")
    inside = _folders(path)
    splits = inside if "train" in inside else [""]
    classes = _folders(path / "train") if "train" in inside else inside
    held = {split or "train": _files(path / split, classes) for split in splits}
    sizes = {split: len(files) for split, (files, _) in held.items()}
    if not sizes["train"]:
        raise ValueError(
            f"--dataset={name} must hold images ({', '.join(SUFFIXES)}) in one folder a class, or "
            "such folders in train and validation. Received: a folder without"
        )
    empty = sorted(set(range(len(classes))) - set(held["train"][1]))
    if empty:
        raise ValueError(
            f"--dataset={name} must hold images ({', '.join(SUFFIXES)}) of every class. Received: "
            f"none in {path / ('train' if 'train' in inside else '') / classes[empty[0]]}"
        )

    def examples(split: str) -> tf.data.Dataset:
        chosen = rows(split, sizes)
        files = np.concatenate([held[each][0][some] for each, some in chosen])
        labels = np.concatenate([held[each][1][some] for each, some in chosen])
        return tf.data.Dataset.from_tensor_slices((files, labels))

    return Source(
        name,
        sizes,
        classes=len(classes),
        shape=(None, None, None),
        encoded=True,
        bytes=200,  # of a path: files are opened after they are shuffled
        paths=True,
        examples=examples,
        count=lambda split: sum(len(each) for _, each in rows(split, sizes)),
    )


def _folders(path: Path) -> list[str]:
    found = (each for each in path.iterdir() if each.is_dir())
    return sorted(each.name for each in found if not each.name.startswith("."))


def _files(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Paths and labels, mixed in an order that is always the same: parts of a split have all."""
    unknown = sorted(set(_folders(path)) - set(classes))
    if unknown:
        raise ValueError(f"{path} must hold the classes of train. Received: {unknown[0]!r} too")
    found = [
        (str(file), label)
        for label, name in enumerate(classes)
        for file in (sorted((path / name).iterdir()) if (path / name).is_dir() else ())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    order = np.random.default_rng(0).permutation(len(found))
    files = np.array([file for file, _ in found], dtype=object)[order]
    return files, np.array([label for _, label in found], np.int64)[order]


def _tfds(name: str, data_dir: str | None, download: bool) -> Source:
    """A TensorFlow Dataset, read from its files; images are decoded later."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"--dataset={name} needs tensorflow-datasets: pip install 'espace_tf[tfds]'"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if download:
            builder.download_and_prepare()
        info = builder.info
        if not info.splits:
            raise ValueError(f"it is not prepared in {builder.data_dir}")
    except Exception as error:  # tfds raises many kinds, and some of its builders others
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"--dataset={name} cannot be read: {reason}. Prepare it once with --download, or name "
            "its folder with --data_dir"
        ) from error
    keys = info.supervised_keys
    if not keys or len(keys) < 2 or any(not isinstance(key, str) for key in keys[:2]):
        raise ValueError(
            f"--dataset={name} must have images with labels. Received: one of {info.features}"
        )
    image, label = (info.features[key] for key in keys[:2])
    encoded = isinstance(image, tfds.features.Image) and np.dtype(image.np_dtype) == np.uint8
    decoders = {keys[0]: tfds.decode.SkipDecoding()} if encoded else None

    def examples(split: str) -> tf.data.Dataset:
        # Several files are read in turns, always in the same ones.
        found = builder.as_dataset(split=_known(split), shuffle_files=False, decoders=decoders)
        return found.map(lambda each: (each[keys[0]], each[keys[1]]))

    def _known(split: str) -> str:
        try:
            found = info.splits[split]
        except Exception as error:
            raise ValueError(
                f"a split of {name} must be one of {', '.join(info.splits)}, or a part of it as in "
                f"train[:90%]. Received: {split!r}"
            ) from error
        if not found.num_examples:
            raise _empty(split)
        return split

    total = sum(each.num_examples for each in info.splits.values())
    return Source(
        name,
        {split: each.num_examples for split, each in info.splits.items()},
        classes=getattr(label, "num_classes", None),
        shape=tuple(image.shape),
        encoded=encoded,
        bytes=max(1, int(sum(each.num_bytes for each in info.splits.values()) / max(1, total))),
        examples=examples,
        count=lambda split: info.splits[_known(split)].num_examples,
    )
