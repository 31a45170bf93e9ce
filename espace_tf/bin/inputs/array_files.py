"""Arrays named on a command line: an .npz file, or a folder of idx files."""

import gzip
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.network import graph

FORMS = (
    "an .npz file with x (and y, x_test, y_test), or a folder of idx files as MNIST comes in "
    "(train-images-idx3-ubyte.gz, ...)"
)
# Operations with which a network brings images to the values that it was trained on.
_ARITHMETIC = ("Divide", "TrueDivide", "Multiply", "Subtract", "TFOpLambda")
# Beginnings of layers' names that may come before and leave values what they are.
_KEEPS = ("Resizing", "CenterCrop", "Random", "ZeroPadding", "Cropping", "Identity", "Cast")
_IDX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Data:
    """Images in [0, 1] and labels.

    Attributes:
        x: [N, H, W, C].
        y: labels of x, or None.
        x_test, y_test: held out, or None.
    """

    x: np.ndarray
    y: np.ndarray | None = None
    x_test: np.ndarray | None = None
    y_test: np.ndarray | None = None

    @property
    def train(self) -> Any:
        """(x, y), or x where there are no labels."""
        return self.x if self.y is None else (self.x, self.y)

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(x_test, y_test), or None unless both are there."""
        missing = self.x_test is None or self.y_test is None
        return None if missing else (self.x_test, self.y_test)

    def first(self, images: int) -> "Data":
        """So many of the images, and as many of those held out."""
        return Data(**{k: v if v is None else v[:images] for k, v in vars(self).items()})


def load(source: str | Path) -> Data:
    """Reads images and labels for a network of maps with channels in [0, 1].

    Args:
        source: the path of an .npz file (keys x or x_train; optional y or y_train, x_test,
            y_test), or the folder of MNIST-like idx files (.gz or not).

    Raises:
        ValueError: nothing is there, or in another form.

    Example:
        >>> load("digits.npz").x.shape
        (1797, 8, 8, 1)
    """
    arrays = read(source)
    images = {name: as_images(in_rank(arrays[name])) for name in ("x", "x_test") if name in arrays}
    labels = {name: arrays[name] for name in ("y", "y_test") if name in arrays}
    return Data(**images, **labels)


def read(source: str | Path) -> dict[str, np.ndarray]:
    """The arrays as they are in the files: x, and what there is of y, x_test and y_test.

    Args:
        source: see `load`.

    Raises:
        ValueError: nothing is there, or in another form.
    """
    text = str(source)
    if Path(text).is_dir():
        arrays = _from_idx(Path(text))
    elif Path(text).is_file() and text.endswith(".npz"):
        arrays = _from_npz(Path(text))
    else:
        raise ValueError(f"data must be {FORMS}. Received: {text!r}, which is none of these.")
    _check_shapes(arrays, text)
    return arrays


def in_rank(array: np.ndarray, model: Any = None) -> np.ndarray:
    """Grey images with an axis of one channel, or without, as the model's input has it."""
    inputs = getattr(model, "inputs", None)
    rank = len(inputs[0].shape) if inputs and len(inputs) == 1 else max(array.ndim, 4)
    if (array.ndim, rank) == (3, 4):
        return array[..., None]
    return array[..., 0] if (array.ndim, rank, array.shape[-1]) == (4, 3, 1) else array


def as_images(array: np.ndarray, preprocessing: str = "scale") -> np.ndarray:
    """8-bit images in [0, 1], of "symmetric" in [-1, 1], of "none" as they are.

    Numbers in 64 bits become float32.
    """
    if array.dtype == np.uint8 and preprocessing != "none":
        scaled = array.astype(np.float32) / np.float32(255)
        return 2 * scaled - 1 if preprocessing == "symmetric" else scaled
    return array.astype(np.float32) if array.dtype == np.float64 else array


def preprocesses(model: Any) -> bool:
    """Whether a model takes images as files hold them: integers, or values that it scales itself.

    Args:
        model: a Keras model; of one without a known graph nothing is known.
    """
    inputs = getattr(model, "inputs", None) or ()
    if any("int" in str(tensor.dtype) for tensor in inputs):
        return True
    return bool(inputs) and graph.is_container(model) and _scales(model, {*map(id, inputs)})


def _scales(container: Any, images: set[int]) -> bool:
    """Whether the first layer in a container that changes values of these tensors scales them."""
    inside = getattr(container, "_functional", None) or container
    images = images | {id(tensor) for tensor in inside.inputs}
    for layer, inputs, outputs, _ in graph.nodes(container):
        if not any(id(tensor) in images for tensor in inputs):
            continue
        if type(layer).__name__ in ("Rescaling", "Normalization", *_ARITHMETIC):
            return _takes_bytes(layer)
        if graph.is_container(layer):
            return _scales(layer, set())
        if type(layer).__name__.startswith(_KEEPS):
            images |= {id(tensor) for tensor in outputs}
    return False


def _takes_bytes(layer: Any) -> bool:
    """Whether a layer that scales images takes them from [0, 255] rather than from [0, 1]."""
    kind = type(layer).__name__
    if kind == "Rescaling":
        return float(np.max(np.abs(layer.scale))) < 0.1
    return kind != "Normalization" or float(np.max(np.asarray(layer.mean))) > 1


def read_idx(path: Path) -> np.ndarray:
    """One idx file of unsigned bytes (the format of MNIST), gzipped or not.

    Raises:
        ValueError: the file is not of this format, or cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an idx file of bytes")
        rank = content[3]
        shape = np.frombuffer(content, ">i4", rank, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an idx file: {error}.") from error


def _from_idx(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for part, prefix in _IDX.items():
        for kind, letter in (("images-idx3", "x"), ("labels-idx1", "y")):
            found = sorted(folder.glob(f"{prefix}-{kind}-ubyte*"))
            if found:
                arrays[letter if part == "train" else f"{letter}_test"] = read_idx(found[0])
    if "x" not in arrays:
        raise ValueError(
            f"data must be {FORMS}. Received: the folder {str(folder)!r}, which has no "
            "train-images-idx3-ubyte(.gz)."
        )
    return arrays


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            head = file.read(6)
        if head == b"\x93NUMPY":
            raise ValueError("it is an .npy file; write it with np.savez(path, x=x, y=y)")
        if not head.startswith(b"PK"):
            raise ValueError("it does not begin like one")
        found = np.load(path, allow_pickle=False)
        with found as file:
            arrays = {name.removesuffix("_train"): file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of arrays: {error}.") from error
    if "x" not in arrays:
        raise ValueError(
            f"{path} must hold x (or x_train), and may hold y, x_test and y_test. It holds: "
            f"{', '.join(sorted(arrays)) or 'nothing'}."
        )
    return arrays


def _check_shapes(arrays: dict[str, np.ndarray], source: str) -> None:
    for name, array in arrays.items():
        if name in ("x", "y", "x_test", "y_test") and array.ndim == 0:
            raise ValueError(
                f"data {source!r} must hold arrays of many examples. Received: one value as {name}."
            )
    shapes = [arrays[name].shape for name in ("x", "x_test") if name in arrays]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            f"data {source!r} must hold images of one shape. Received: {shapes[0]} as x, "
            f"{shapes[1]} as x_test."
        )
    for x, y in (("x", "y"), ("x_test", "y_test")):
        if x in arrays and y in arrays and len(arrays[x]) != len(arrays[y]):
            raise ValueError(
                f"data {source!r} must hold as many labels as images. Received: {len(arrays[x])} "
                f"in {x}, {len(arrays[y])} in {y}."
            )
