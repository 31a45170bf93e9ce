"""Images that the statistics do not see, and what compressed networks answer on them."""

from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data.arrays import count, split
from espace_tf.data.batches import batches, fixed_batch, named_inputs
from espace_tf.data.sample import sample
from espace_tf.data.sizes import largest_map
from espace_tf.data.uneven import Uneven, joined
from espace_tf.network import costs, graph
from espace_tf.network.network import Network
from espace_tf.objectives import targets
from espace_tf.objectives.distance import Distance
from espace_tf.objectives.judge import cosines, hits
from espace_tf.objectives.losses import OutputLoss
from espace_tf.records.comparison import Comparison
from espace_tf.records.site import is_known

# Images that are answered together, and bytes of all their maps at once.
_BATCH, _MEMORY = 32, 1e9
# As many images as the statistics have by default, but no more multiply-accumulates than this for
# the given network (about a minute on two cores), and _LEAST at least.
_MOST = 512
_LEAST = 32
_MACS = 3e12
# Of data that are too few for both, the share that is held out.
_SHARE = 0.2
_WORST = 1e6  # the loss of a network whose answers are no numbers


class HeldOut:
    """Compares compressed networks with the given one on images of their own.

    Args:
        network: the given one; it runs on all the images once.
        data: as for `compress`.
        loss: as in `compile`, or None.
        calibration_images: how many the statistics want.
        seed: of what is drawn.

    Attributes:
        data: what was drawn of the data, in memory, in an order of its own.
        seen: how many images from the beginning of `data` the statistics may read.

    Raises:
        ValueError: data or labels that do not go with the model.
    """

    def __init__(self, network: Network, data: Any, loss: Any, calibration_images: int, seed: int):
        model = network.model
        macs = sum(site.macs() for site in network.sites if is_known(site))
        wanted = int(min(_MOST, max(_LEAST, _MACS // max(macs, 1))))
        inputs = named_inputs(model)
        self.data = sample(data, calibration_images + wanted, inputs, seed)
        total, size = count(self.data), fixed_batch(inputs) or 1
        held = min(wanted, max(int(_SHARE * total), total - calibration_images))
        held = -(-held // size) * size
        # A handful of images is not divided: they are all there is to see and to judge by.
        held = held if total - held >= size else 0
        self.seen = min(calibration_images, total - held) // size * size or total
        start, end = (self.seen, self.seen + held) if held else (0, total)
        first, _ = next(batches(self.data, 1, 1, inputs=inputs))
        together = costs.images_within(model, _MEMORY, _BATCH, largest_map(first))
        found = list(batches(self.data, end, together, start=start, inputs=inputs))
        self._inputs = [tf.nest.map_structure(tf.convert_to_tensor, x) for x, _ in found]
        self._labels = [y for _, y in found]
        resolved = targets.resolve(model, loss, found[0], seed)
        self._outputs = resolved.outputs
        self._loss = resolved.target if resolved.name == "labels" else None
        self._batches_before = self._answers(model)
        self._before = _whole(self._batches_before)
        if self._loss is not None and not isinstance(self.data, Uneven):  # those not held out, too
            targets.check_labels(self._outputs, self._before, split(self.data)[1], "data")
        self._distance = Distance(self._outputs, self._before)

    def compare(self, small: Any) -> Comparison:
        """How far this network's answers are from the given one's."""
        batches_after = self._answers(small)
        after = _whole(batches_after)
        pairs = list(zip(self._outputs, self._before, after, strict=True))
        increase = self._distance(self._before, after)
        known: dict[str, float] = {}
        if self._loss is not None:
            known = self._accuracies(after)
            # A loss of values has the labels' unit: what was relative cannot be compared with it.
            if all(each.kind != "values" for each in self._outputs if each.weight):
                was, now = map(self._mean_loss, (self._batches_before, batches_after))
                increase = max(increase, now - was)
        agreements = [_agreement(*pair) for pair in pairs if pair[0].weight]
        if not np.isfinite([increase, *agreements]).all():  # half precision can overflow
            increase, agreements = _WORST, [0.0]
        return Comparison(
            images=sum(map(_length, self._inputs)),
            loss_increase=float(increase),
            agreement=min(agreements, default=1.0),
            **known,
        )

    @property
    def images(self) -> Any:
        """The images that the statistics may read, without labels."""
        if isinstance(self.data, Uneven):
            return self.data.inputs(self.seen)
        return tf.nest.map_structure(lambda each: each[: self.seen], split(self.data)[0])

    @property
    def tells_accuracy(self) -> bool:
        """Whether labels and outputs are such that answers are right or wrong."""
        single = len(self._outputs) == 1 and self._outputs[0].kind != "values"
        return single and self._loss is not None

    def _answers(self, model: Any) -> list[list[tf.Tensor]]:
        """Of each batch every output, in the order of tf.nest.flatten."""
        return [tf.nest.flatten(graph.forward(model, x)) for x in self._inputs]

    def _mean_loss(self, answers: list[list[tf.Tensor]]) -> float:
        pairs = zip(answers, self._labels, strict=True)
        total = sum(float(self._loss(outputs, y, 0)) for outputs, y in pairs)
        return total / sum(map(_length, self._inputs))

    def _accuracies(self, after: list[np.ndarray]) -> dict[str, float]:
        """Of a single output of classes or labels."""
        if not self.tells_accuracy:
            return {}
        label = joined([tf.nest.flatten(y)[0] for y in self._labels])
        right = [hits(self._outputs[0], np.asarray(s[0]), label) for s in (self._before, after)]
        return dict(zip(("accuracy_before", "accuracy_after"), map(_mean, right), strict=True))


def _length(inputs: Any) -> int:
    return len(tf.nest.flatten(inputs)[0])


def _whole(batches: list[list[tf.Tensor]]) -> list[np.ndarray]:
    """Each output of all the images."""
    return [joined(parts) for parts in zip(*batches, strict=True)]


def _mean(hits: np.ndarray) -> float:
    return float(hits.mean())


def _agreement(output: OutputLoss, before: np.ndarray, after: np.ndarray) -> float:
    before, after = (np.asarray(tf.cast(each, tf.float32)) for each in (before, after))
    if output.kind == "classes":
        return _mean(before.argmax(-1) == after.argmax(-1))
    if output.kind == "multi-label":
        side = 0.5 if output.probabilities else 0.0
        return _mean((before > side) == (after > side))
    return float(cosines(before, after).mean())
