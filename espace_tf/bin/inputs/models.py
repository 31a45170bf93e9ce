"""Model files named on a command line, of both Keras libraries."""

import functools
import inspect
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_HEADS = {".keras": b"PK", ".h5": b"\x89HDF", ".hdf5": b"\x89HDF"}
# Of Keras 2, whose configurations of these have arguments that Keras 3 does not know; with these
# values they say nothing.
_FEWER_ARGUMENTS = (
    *("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
    *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
)
_SAY_NOTHING = {"groups": 1, "kernel_regularizer": None, "kernel_constraint": None}
FORMS = "an existing .keras, .h5 or .hdf5 file, or the folder of a SavedModel"


def check(path: str | Path, name: str = "model") -> Path:
    """The path, if something is there of a kind that `load` reads.

    Args:
        path: of a file, or of a SavedModel's folder.
        name: the argument or flag that it was given by, for errors.

    Raises:
        ValueError: it is not.
    """
    path = Path(path)
    file = path.suffix in _HEADS and path.is_file()
    if not file and not (path / "saved_model.pb").is_file():
        raise ValueError(f"{name} must be {FORMS}. Received: {str(path)!r}")
    return path


def is_file(text: str) -> bool:
    """Whether a text means a file or folder, rather than the name of a network."""
    return "/" in text or Path(text).suffix in _HEADS or Path(text).exists()


def load(path: str | Path, name: str = "model") -> Any:
    """Reads a model with Keras 3, or with tf_keras what only that reads.

    Args:
        path: a .keras file of either library, an .h5 or .hdf5 file, or a SavedModel's folder that
            Keras 2 saved a model to.
        name: the argument or flag that it was given by, for errors.

    Raises:
        ValueError: there is no such file, or it is no model that can be read.
    """
    path = check(path, name)
    if path.is_file():
        _check_whole(path, name)
    import espace_tf.keras_layers  # noqa: F401  Files of compressed models name these layers.

    problems = []
    for read in _ways(path):
        try:
            with warnings.catch_warnings():
                # The state of the optimizer that trained it is of no use here.
                warnings.filterwarnings("ignore", "(?s).*Skipping variable loading for optimizer")
                return _checked(read())
        except Exception as error:  # Each library and file format raises its own kinds.
            problems.append(error)
    # What the first way lacks is the reason; the others are for what is older.
    raise ValueError(f"{name} {str(path)!r} cannot be read: {problems[0]}") from problems[0]


def _ways(path: Path) -> Iterator[Callable[[], Any]]:
    """How a file may be read, the best way first; a loss that is not known may be done without."""
    import keras

    libraries = [keras, None] if path.suffix in (".h5", ".hdf5") else [keras]
    if path.is_dir() or _written_by_keras_2(path):
        libraries = [None]
    for library in libraries:
        known = None
        if library is None:
            import tf_keras as library
        elif path.suffix != ".keras":
            known = {name: _OfKeras2(getattr(keras.layers, name)) for name in _FEWER_ARGUMENTS}
        read = functools.partial(library.models.load_model, path, custom_objects=known)
        yield read
        yield functools.partial(read, compile=False)


class _OfKeras2:
    """Stands for a class of Keras 3 where files of Keras 2 are read."""

    def __init__(self, kind: type):
        self._kind, self.__name__ = kind, kind.__name__

    def from_config(self, config: dict[str, Any], **_: Any) -> Any:
        """A layer of that class."""
        taken = inspect.signature(self._kind).parameters
        known = {
            key: value
            for key, value in config.items()
            if key in taken or not self._says_nothing(key, value)
        }
        return self._kind.from_config(known)

    @staticmethod
    def _says_nothing(key: str, value: Any) -> bool:
        """Whether an argument may be left out; weights are read after a layer is made."""
        return key == "kernel_initializer" or (key in _SAY_NOTHING and value == _SAY_NOTHING[key])


def _checked(model: Any) -> Any:
    """A SavedModel may come back as something that only looks like the model it was."""
    from espace_tf.network import graph

    graph.library(model)
    return model


def _check_whole(path: Path, name: str) -> None:
    """Raises for what is truncated or of another format, of which Keras says that it is missing."""
    with open(path, "rb") as file:
        begins = file.read(4).startswith(_HEADS[path.suffix])
    if not begins or path.suffix == ".keras" and not zipfile.is_zipfile(path):
        why = "it is truncated" if begins else f"it does not begin like a {path.suffix} file"
        raise ValueError(
            f"{name} {str(path)!r} cannot be read: {why}. Copy or save the model again"
        )


def _written_by_keras_2(path: Path) -> bool:
    """Whether a .keras file is of Keras 2, whose .keras files Keras 3 does not read."""
    if path.suffix != ".keras":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return False
    return version.startswith("2")
