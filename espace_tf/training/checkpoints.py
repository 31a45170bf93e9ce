"""A training run on disk: one file, replaced in one step, that only the same run can continue."""

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.distribution.replicas import Replicas
from espace_tf.files import atomic_write, checked_path, output_folder

VERSION = 2
# What NumPy and JSON raise of a file that is cut, changed, or another one.
_DAMAGED = (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class Checkpoint:
    """The state of a training run in `folder`/fine_tune.npz.

    Args:
        folder: made if it is missing.
        run: what the run is, JSON-able: only a run that is equal in all of it may continue.
        team: the replicas of the run: only the chief has the folder, the others get what it reads.

    Raises:
        TypeError, ValueError: folder is no path.
        OSError: the folder cannot be written; the message calls it checkpoint_dir.

    Example:
        >>> checkpoint = Checkpoint("run1", {"epochs": 3})
        >>> checkpoint.save([np.zeros(2)], {"epoch": 1})
        >>> arrays, progress = checkpoint.load()
    """

    def __init__(self, folder: str | Path, run: dict[str, Any], team: Replicas | None = None):
        self.team = team or Replicas()
        find = output_folder if self.team.is_chief else checked_path
        self.path = find(folder, "checkpoint_dir") / "fine_tune.npz"
        self.run = json.loads(json.dumps(run))

    def save(self, arrays: Sequence[np.ndarray], progress: dict[str, Any]) -> None:
        """Writes the state; a crash at any moment leaves the former file or this one."""
        if not self.team.is_chief:
            return
        body = {"version": VERSION, "run": self.run, "progress": progress, "count": len(arrays)}
        named = {f"array{index}": array for index, array in enumerate(arrays)}
        text = json.dumps(body, default=lambda value: np.asarray(value).tolist())
        named["body"] = np.frombuffer(text.encode(), np.uint8)
        with atomic_write(self.path, "checkpoint_dir") as temporary, open(temporary, "wb") as file:
            np.savez(file, **named)

    def load(self) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """The last saved arrays and progress; None if there is no checkpoint yet.

        Raises:
            ValueError: the file is damaged, of another version, or of another run.
        """
        mine = self.team.is_chief and self.path.exists()
        contents = self.team.from_chief(self.path.read_bytes() if mine else None)
        if contents is None:
            return None
        try:
            with np.load(io.BytesIO(contents)) as stored:
                body = json.loads(stored["body"].tobytes())
                arrays = [stored[f"array{index}"] for index in range(body["count"])]
        except _DAMAGED as error:
            raise ValueError(
                f"{self.path} is damaged ({error}): delete it to begin the training anew"
            ) from error
        if body["version"] != VERSION:
            raise ValueError(
                f"{self.path} must have version {VERSION}. Received: version {body['version']}, "
                "written by another release: delete it to begin the training anew"
            )
        self._check_run(body["run"])
        return arrays, body["progress"]

    def _check_run(self, stored: dict[str, Any]) -> None:
        names = sorted({*stored, *self.run})
        differing = [name for name in names if stored.get(name) != self.run.get(name)]
        if differing:
            changes = "; ".join(
                f"{name} was {_short(stored.get(name))}, now is {_short(self.run.get(name))}"
                for name in differing
            )
            raise ValueError(
                f"{self.path} belongs to another training: {changes}. Repeat that call to "
                "continue it, or give another checkpoint_dir"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
