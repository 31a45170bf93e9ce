"""Model files named on a command line, of both Keras libraries."""

import contextlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any


def check(path: str | Path) -> Path:
    """The path, if it is an existing file of a kind that `load` reads.

    Raises:
        ValueError: it is not.
    """
    path = Path(path)
    if path.suffix not in (".keras", ".h5") or not path.is_file():
        raise ValueError(f"model must be an existing .keras or .h5 file. Received: {str(path)!r}")
    return path


def load(path: str | Path) -> Any:
    """Reads a model with the Keras library that wrote it.

    Args:
        path: a .keras file of Keras 3 or tf_keras, or an .h5 file of tf_keras or older Keras.

    Raises:
        ValueError: there is no such file, or it is no model that can be read.
    """
    path = check(path)
    import espace_tf.keras_layers  # noqa: F401  Files of compressed models name these layers.

    library = _library(path)
    try:
        with warnings.catch_warnings():
            # The state of the optimizer that trained it is of no use here.
            warnings.filterwarnings("ignore", "(?s).*Skipping variable loading for optimizer")
            return library.models.load_model(path)
    except Exception as error:  # Each library and file format raises its own kinds.
        raise ValueError(f"model {str(path)!r} cannot be read: {error}") from error


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

        from espace_tf.keras_layers import legacy

        for name in legacy.MIXINS:
            legacy.layer_class(name)  # Registers it for the file to name.
        return tf_keras
    import keras

    return keras
