"""Finished parts of a long computation, kept in a folder so that it can be taken up again."""

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from espace_tf.files import atomic_write, output_folder
from espace_tf.timing.layer_times import OPERATORS, code_digest, environment

Arrays = dict[str, np.ndarray]
_PACKAGE = Path(__file__).parents[1]


class ResultCache:
    """Results by name, computed once for each key by the same code.

    Args:
        folder: where they are kept, made if it is not there; None: nowhere.
        key: what tells this computation from any other.

    Raises:
        TypeError, ValueError: folder is no path.
        OSError: the folder cannot be written; the message calls it cache_dir.
    """

    def __init__(self, folder: str | Path | None, *key: str):
        self._given, self._folder = (folder, *key), None
        if folder is not None:
            known = repr((*key, code_digest(_PACKAGE, *OPERATORS)))
            own = hashlib.sha256(known.encode()).hexdigest()[:16]
            self._folder = output_folder(output_folder(folder, "cache_dir") / own, "cache_dir")

    def of_this_machine(self) -> "ResultCache":
        """The same for results that hold on this machine only: times, and what depends on them."""
        return ResultCache(*self._given, repr(environment()))

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of this name: read if they were finished before, else computed and kept.

        A file that is damaged is computed anew.
        """
        if self._folder is None:
            return compute()
        # The digest tells apart names that only differ in what a file name cannot hold.
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        path = self._folder / f"{re.sub(r'[^0-9A-Za-z.-]', '_', name)}.{digest}.npz"
        if path.exists():
            try:
                with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                    return dict(stored)
            except Exception:  # zipfile and NumPy raise many kinds for a damaged file.
                path.unlink()
        found = compute()
        with atomic_write(path, "cache_dir") as temporary, open(temporary, "wb") as file:
            np.savez(file, **found)
        return found
