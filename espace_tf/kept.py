"""Networks and trainings of a long call, kept in a folder so that the call can be repeated."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.files import atomic_write, output_folder
from espace_tf.planning.search import Search
from espace_tf.records.plan import Plan


class Kept:
    """What is finished of a call, by name, and where its trainings leave checkpoints.

    Args:
        folder: where to keep it, made when it is needed; None: nowhere.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder

    @classmethod
    def of_call(cls, cache_dir: Any, *key: Any) -> "Kept":
        """For one call among others; a part of the key that is None tells no call apart."""
        if cache_dir is None or None in key:
            return cls(None)
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return cls(output_folder(cache_dir, "cache_dir") / f"stages-{digest}")

    def inside(self, name: str) -> "Kept":
        """The same for a part of the call."""
        return self if self._folder is None else Kept(self._folder / name.replace(" ", "-"))

    def training(self, name: str) -> Path | None:
        """The checkpoint_dir of a training."""
        return None if self._folder is None else self._folder / name

    def network(self, search: Search, make: Callable[[], Any]) -> Any:
        """The compressed network as it was kept, or else made, and kept."""
        if self._folder is None:
            return make()
        plan = output_folder(self._folder, "cache_dir") / "plan.json"
        weights = plan.with_name("weights.npz")
        if weights.exists():  # written last
            model = search.applied(Plan.load(plan))
            with np.load(weights) as stored:
                model.set_weights([stored[f"weight{index}"] for index in range(len(stored))])
            return model
        model = make()
        model.espace_plan.save(plan)
        with atomic_write(weights, "cache_dir") as temporary, open(temporary, "wb") as file:
            np.savez(file, **{f"weight{i}": each for i, each in enumerate(model.get_weights())})
        return model
