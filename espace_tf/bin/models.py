"""Model files named on a command line, of both Keras libraries."""

import contextlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any


def check(path: str | Path, name: str = "model") -> Path:
    """The path, if it is an existing file of a kind that `load` reads.

    Args:
        path: of the file.
        name: the argument or flag that it was given by, for errors.

    Raises:
        ValueError: it is not.
    """
    path = Path(path)
    if path.suffix not in (".keras", ".h5") or not path.is_file():
        raise ValueError(f"{name} must be an existing .keras or .h5 file. Received: {str(path)!r}")
    return path


def load(path: str | Path, name: str = "model") -> Any:
    """Reads a model with the Keras library that wrote it.

    Args:
        path: a .keras file of Keras 3 or tf_keras, or an .h5 file of tf_keras or older Keras.
        name: the argument or flag that it was given by, for errors.

    Raises:
        ValueError: there is no such file, or it is no model that can be read.
    """
    path = check(path, name)
    _check_whole(path, name)
    import espace_tf.keras_layers  # noqa: F401  Files of compressed models name these layers.

    library = _library(path)
    try:
        with warnings.catch_warnings():
            # The state of the optimizer that trained it is of no use here.
            warnings.filterwarnings("ignore", "(?s).*Skipping variable loading for optimizer")
            return library.models.load_model(path)
    except Exception as error:  # Each library and file format raises its own kinds.
        raise ValueError(f"{name} {str(path)!r} cannot be read: {error}") from error


def _check_whole(path: Path, name: str) -> None:
    """Raises for what is truncated or of another format, of which Keras says that it is missing."""
    heads = {".keras": b"PK", ".h5": b"\x89HDF"}
    with open(path, "rb") as file:
        begins = file.read(4).startswith(heads[path.suffix])
    if not begins or path.suffix == ".keras" and not zipfile.is_zipfile(path):
        why = "it is truncated" if begins else f"it does not begin like a {path.suffix} file"
        raise ValueError(
            f"{name} {str(path)!r} cannot be read: {why}. Copy or save the model again"
        )


def _library(path: Path) -> Any:
    """The module `tf_keras` for files that Keras 2 wrote, otherwise `keras`."""
    version = "3"
    with contextlib.suppress(OSError, KeyError, ValueError, zipfile.BadZipFile):
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                version = json.loads(archive.read("metadata.json"))["keras_version"]
        else:
            import h5py

            with h5py.File(path) as file:
                version = file.attrs["keras_version"]
    if version.startswith("2"):
        import tf_keras

        return tf_keras
    import keras

    return keras
