"""Networks judged on a dataset part by part, so that a restart knows how far it was."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data.batches import batches, in_order, named_inputs
from espace_tf.deploy import tflite
from espace_tf.network.tracing import traced
from espace_tf.objectives import targets
from espace_tf.objectives.judge import ACCURACIES, cosines, hits

_BATCH = 64
_TOP = 5


def from_file(path: str, model: Any) -> Callable[[Any], Any]:
    """A .tflite file as a function of images.

    Args:
        path: of the file.
        model: the Keras model that it takes and gives the tensors of.
    """
    try:
        run = tflite.run_function(model, path)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"--model {path!r} cannot be read: {error}") from error
    return lambda images: run(in_order(model, images))


class Judging:
    """Sums over parts of a dataset, of several networks that take and give the same.

    Args:
        model: the Keras model that says what outputs mean.
        data: arrays, or batches; with labels, or without.
        calls: functions of images by the networks' names, the one to compare with first.

    Raises:
        ValueError: labels that are none of the model.
    """

    def __init__(self, model: Any, data: Any, calls: Mapping[str, Callable[[Any], Any]]):
        name = "--test_split"
        self._data, self._inputs = data, {"inputs": named_inputs(model), "name": name}
        self._calls = {
            name: traced(call) if hasattr(call, "inputs") else call for name, call in calls.items()
        }
        self._batches: Iterator[Any] | None = None
        example = next(batches(data, _BATCH, _BATCH, **self._inputs))
        labelled = example[1] is not None
        self._known = targets.resolve(model, None, example, 0, name=name) if labelled else None

    def all(self) -> dict[str, dict[str, float]]:
        """Means over all images, by network."""
        return means([self.part(0, None)])

    def part(self, start: int, images: int | None) -> dict[str, dict[str, float]]:
        """Sums over the images from `start` on, by network; one part follows the other.

        Args:
            start: how many images come before; read past in the first call.
            images: how many, whole batches of 64; None: all.
        """
        sums: dict[str, dict[str, float]] = {name: {} for name in self._calls}
        if self._batches is None:
            self._batches = batches(self._data, None, _BATCH, start=start, **self._inputs)
        wanted = None if images is None else -(-images // _BATCH)
        for x, y in itertools.islice(self._batches, wanted):
            first = None
            for name, call in self._calls.items():
                outputs = [np.asarray(each) for each in tf.nest.flatten(call(x))]
                found = {"images": len(tf.nest.flatten(x)[0]), **self._against_labels(outputs, y)}
                if first is not None:
                    found |= _against(first, outputs)
                first = outputs if first is None else first
                for key, value in found.items():
                    sums[name][key] = sums[name].get(key, 0) + value
        return sums

    def _against_labels(self, outputs: list[np.ndarray], y: Any) -> dict[str, float]:
        """Sums of what the labels say of a batch."""
        if self._known is None:
            return {}
        known = self._known.outputs
        targets.check_labels(known, outputs, y, self._inputs["name"])
        found = {"loss": float(self._known.target(outputs, y, 0))}
        if len(known) != 1 or known[0].kind not in ACCURACIES:
            return found
        (label,) = map(np.asarray, tf.nest.flatten(y))
        right = hits(known[0], outputs[0], label)
        found |= {ACCURACIES[known[0].kind]: int(right.sum()), "judged": right.size}
        if known[0].kind == "classes" and outputs[0].shape[-1] > _TOP and outputs[0].ndim == 2:
            classes = label.argmax(-1) if label.shape == outputs[0].shape else label.ravel()
            best = np.argpartition(outputs[0], -_TOP)[:, -_TOP:]
            found["top5"] = int((best == classes[:, None]).any(1).sum())
        return found


def _against(first: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> dict[str, float]:
    """Sums of how alike two networks answer: same class, or the cosine of values."""
    if len(first) == 1 and first[0].ndim == 2 and first[0].shape[1] > 1:
        return {"agreement": int((first[0].argmax(-1) == outputs[0].argmax(-1)).sum())}
    one, two = (
        np.concatenate([each.reshape(len(each), -1) for each in both], 1, dtype=float)
        for both in (first, outputs)
    )
    return {"cosine": float(cosines(one, two).sum())}


def means(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over all images, by network.

    Args:
        parts: from `Judging.part`.
    """
    found = {}
    for name in parts[0]:
        total = {key: sum(part[name][key] for part in parts) for key in parts[0][name]}
        images, judged = total.pop("images"), total.pop("judged", None)
        found[name] = {"images": images}
        for key, value in total.items():
            found[name][key] = value / (judged if key in ACCURACIES.values() else images)
    return found
