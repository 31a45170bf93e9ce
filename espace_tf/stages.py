"""Finished stages of a long computation, kept in a folder so that it can be taken up again."""

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from espace_tf.files import atomic_write

Arrays = dict[str, np.ndarray]


class Stages:
    """Results by name, computed once for each key.

    Args:
        folder: where they are kept, made if it is not there; None: nowhere.
        key: a text that tells this computation from any other.
    """

    def __init__(self, folder: str | Path | None, key: str):
        self._folder = None
        if folder is not None:
            self._folder = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]
            self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The stage's arrays: read if the stage was finished before, else computed and kept.

        A file that is damaged is computed anew.
        """
        if self._folder is None:
            return compute()
        path = self._folder / f"{re.sub(r'[^0-9A-Za-z.-]', '_', name)}.npz"
        if path.exists():
            try:
                with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                    return dict(stored)
            except Exception:  # zipfile and NumPy raise many kinds for a damaged file.
                path.unlink()
        found = compute()
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **found)
        return found
