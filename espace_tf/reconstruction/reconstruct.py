"""A compressed network's features drawn to the original's, on a few images without labels."""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from espace_tf.checks import check_choice, check_count, check_number
from espace_tf.data import batches as user_data
from espace_tf.data.arrays import count, split
from espace_tf.data.sample import sample
from espace_tf.data.sizes import largest_map
from espace_tf.data.uneven import Uneven, concatenated, joined, length, shapes
from espace_tf.network import costs, graph
from espace_tf.network.copies import cloning
from espace_tf.network.tracing import traced
from espace_tf.objectives import losses
from espace_tf.objectives.distance import Distance
from espace_tf.objectives.losses import OutputLoss
from espace_tf.reconstruction.closed_form import refit_layers
from espace_tf.reconstruction.descent import Descent
from espace_tf.reconstruction.norms import settle
from espace_tf.rewriting.fuse import check_not_fused
from espace_tf.training.best import Best
from espace_tf.training.set_aside import share
from espace_tf.training.steps.distillation import check_outputs

IMAGES = 512  # that `reconstruct` draws at most
# Steps of the second half: as many as the seconds allow if the teacher's multiply-accumulates of an
# image, two and a half times, are done at this rate on two cores; with what a step costs anyhow.
_RATE, _STEP_SECONDS = 3e10, 0.05
_MOST_STEPS = 200
_LATE = 2.0  # times the seconds asked for: no further step is begun on a slower or busy machine
# `compress` takes no more seconds than this share of what the statistics of so many images take, as
# it is estimated: so many passes through the network, and what tracing takes.
_SHARE, _PASSES, _TRACING = 0.5, 2.7, 4.0
_BATCH, _LEAST_BATCH = 32, 8
# Bytes of all maps of the images that layers are refitted on, or of a batch that is trained on.
_MEMORY = 1e9


class Reconstructed(NamedTuple):
    """How far the answers are from the teacher's on images that were held out, see `Distance`.

    Attributes:
        before: of the model as it was given.
        after: as it was handed back; never more.
    """

    before: float
    after: float


def reconstruct(
    model: Any,
    data: Any,
    *,
    teacher: Any,
    seconds: float = 60.0,
    loss: Any = None,
    seed: int = 0,
    verbose: int = 1,
) -> Reconstructed:
    """Brings most of what a plan has cost back, in place, without labels; `compress` does it too.

    First every convolution and dense layer, first to last, gets the last kernel and bias that bring
    its responses closest to the teacher's by least squares, given what the compressed network
    really gives it to read. Batch norms get the statistics of what they read then, and gammas and
    betas that undo it: a training begins with the same network. Then all weights that may be
    trained are, for 200 steps of Adam at most, to imitate the teacher's outputs and the last map of
    each resolution, at inference: batch norms keep their statistics. Images are set aside (a tenth,
    at least 32, never more than a quarter), and whatever does not bring the answers on them closer
    to the teacher's is undone. `fine_tune`, with more images and labels, goes on from there.

    Args:
        model: what `apply` or `compress` returned; frozen layers stay as they are.
        data: as for `compress`; labels are not used, 512 images are.
        teacher: the uncompressed model; it is not changed.
        seconds: about what the training takes on two cores; what it does depends on the network
            alone, so that results repeat, but ends after twice that. 0: least squares alone.
        loss: as in `compile`: tells what the outputs are; None: the compiled one, or inferred.
        seed: of what is drawn, below 2**32.
        verbose: 0 silent, 1 or 2 one line at the end.

    Returns:
        The distance from the teacher's answers on the images set aside, before and after.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of its range, a model that `strip` made, a teacher with other
            outputs, or data that the model does not take.

    Source: least squares given the compressed prefix, Zhang et al. 2015 (arXiv:1505.06798, section
    3.3.2) and He et al. 2017 (arXiv:1707.06168); both halves are measured by
    `python -m benchmarks.reconstruct`.

    Example:
        >>> small = apply(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
        >>> found = reconstruct(small, images, teacher=model, verbose=0)
        >>> found.after <= found.before
        True
    """
    graph.library(model)
    graph.library(teacher, "teacher")
    graph.check_eager(model)
    check_not_fused(model)
    check_number(seconds, "seconds", 0.0)
    check_count(seed, "seed", 0, 2**32 - 1)
    check_choice(verbose, "verbose", (0, 1, 2))
    if teacher is model:
        raise ValueError("teacher must be another model, the uncompressed one. Received: model")
    drawn = sample(data, IMAGES, user_data.named_inputs(model), seed)
    x = drawn.inputs(len(drawn)) if isinstance(drawn, Uneven) else split(drawn)[0]
    one = next(user_data.batches(x, 1, 1, inputs=user_data.named_inputs(model)))[0]
    check_outputs(graph.forward(teacher, one), graph.forward(model, one))
    teacher = cloning.private_copy(teacher) if graph.is_container(teacher) else teacher
    work = Reconstruction(teacher, x, loss, seed)
    before = work.refit(model).before
    found = Reconstructed(before, work.train(model, seconds).after)
    if verbose:
        print(
            f"Reconstructed: distance from the teacher on {work.held} images set aside "
            f"{found.before:.3g} -> {found.after:.3g}"
        )
    return found


class Reconstruction:
    """The two halves of `reconstruct`, for compressed forms of one network.

    Args:
        teacher: the network, a private copy: its layers are watched.
        x: images, as the network takes them.
        loss, seed: as for `reconstruct`.

    Attributes:
        held: how many of the images are set aside.
    """

    def __init__(self, teacher: Any, x: Any, loss: Any, seed: int):
        self._teacher, self._loss, self._seed = teacher, loss, seed
        self._inputs = user_data.named_inputs(teacher)
        total, self._fixed = count(x), user_data.fixed_batch(self._inputs)
        self._few = next(user_data.batches(x, self._fixed or 1, 1, inputs=self._inputs))[0]
        size = largest_map(self._few)
        self._macs = costs.macs(teacher, size)
        self._most = costs.images_within(teacher, _MEMORY, total, size)
        self._batch = self._fixed or max(min(self._most, _BATCH), _LEAST_BATCH)
        size = self._fixed or 1
        held = -(-share(total) // size) * size
        held = held if total - held >= size else 0
        self._images = self._batches(x, 0, total - held)
        self._held = self._batches(x, total - held, total) if held else self._images
        self.held = sum(map(length, self._held))
        self._wanted = self._answers(teacher)()
        self._judged: tuple[Any, list[OutputLoss], Callable[[], float]] | None = None

    def refit(self, model: Any) -> Reconstructed:
        """The first half, least squares; only what makes the held-out answers better is kept."""
        best, (_, judge) = Best(model.weights), self._judge(model)
        best.note(0, judge())
        images, aside = _of_one_size(self._images, self._held)
        fitted, held = self._refitted_on(*map(length, (images, aside)))
        if fitted and held:
            parts = (images, fitted), (aside, held)
            x = concatenated([_first(each, size) for each, size in parts])
            refit_layers(model, self._teacher, x, fitted, self._seed)
            settle(model, x)
            best.note(1, judge())
        best.put_back()
        return Reconstructed(best.first_loss, best.loss)

    def train(
        self, model: Any, seconds: float, advance: Callable[[int], None] = lambda count: None
    ) -> Reconstructed:
        """The second half, Adam; the weights are those that were best on the held-out images.

        Args:
            model: a compressed form of the network, trained in place.
            seconds: as for `reconstruct`.
            advance: told of every step, of `steps(seconds)` at most.
        """
        best, (outputs, judge) = Best(model.weights), self._judge(model)
        best.note(0, judge())
        steps = self.steps(seconds)
        if steps and model.trainable_variables and math.isfinite(best.loss):
            given = self._images, self._few, outputs, best, judge
            descent = Descent(model, self._teacher, *given)
            descent.advance = advance
            descent.run(steps, time.perf_counter() + _LATE * seconds, self._seed)
            best.put_back()
        return Reconstructed(best.first_loss, best.loss)

    def _batches(self, x: Any, start: int, end: int) -> list[Any]:
        """Batches of one size, for which a graph is traced once; what fills none is left out."""
        number = -(-(end - start) // self._batch)
        size = self._fixed or (end - start) // number
        end = end if self._fixed else start + number * size
        found = user_data.batches(x, end, size, start=start, inputs=self._inputs)
        return [images for images, _ in found]

    def _answers(self, model: Any) -> Callable[[], list[np.ndarray]]:
        """A function that gives each output on the images set aside."""
        forward = traced(lambda values: tf.nest.flatten(graph.forward(model, values)))

        def answers() -> list[np.ndarray]:
            found = [forward(x) for x in self._held]
            return [joined(parts) for parts in zip(*found, strict=True)]

        return answers

    def _judge(self, model: Any) -> tuple[list[OutputLoss], Callable[[], float]]:
        """What is known of a model's outputs, and a function for its distance from the teacher."""
        if self._judged is not None and self._judged[0] is model:
            return self._judged[1:]
        wanted = [tf.convert_to_tensor(each) for each in self._wanted]
        wanted = tf.nest.pack_sequence_as(graph.forward(model, self._few), wanted)
        outputs = losses.of_outputs(model, wanted, None, self._loss)
        distance, answers = Distance(outputs, self._wanted), self._answers(model)

        def judge() -> float:
            with np.errstate(all="ignore"):
                return distance(self._wanted, answers())

        self._judged = model, outputs, judge
        return outputs, judge

    def _refitted_on(self, images: int, aside: int) -> tuple[int, int]:
        """How many images layers are refitted on, and how many are held out from that."""
        if self._fixed is not None:  # one batch is all that the model takes
            held = min(aside, self._fixed // 4)
            return self._fixed - held, held
        fitted = min(images, max(4, self._most * 4 // 5))
        return fitted, min(aside, max(1, fitted // 4))

    def steps(self, seconds: float) -> int:
        """How many steps are taken in so many seconds of two cores."""
        step = _STEP_SECONDS + 2.5 * self._batch * self._macs / _RATE
        return min(int(seconds / step), _MOST_STEPS)

    def affordable(self, seconds: float, images: int) -> float:
        """As many seconds as are in proportion to the statistics of so many images, at most these.

        Estimated from the network alone, as the steps are, so that results repeat.
        """
        return min(seconds, _SHARE * (_TRACING + _PASSES * images * self._macs / _RATE))


def _first(x: Any, images: int) -> Any:
    return tf.nest.map_structure(lambda each: each[:images], x)


def _of_one_size(*several: list[Any]) -> list[Any]:
    """Of several lists of batches the images, as one batch each, of the size that most have."""
    sizes = [Counter() for _ in several]
    for batches, counted in zip(several, sizes, strict=True):
        for x in batches:
            counted[shapes(x)] += length(x)
    size = max(sizes[0], key=lambda each: min(counted[each] for counted in sizes))
    return [
        concatenated([x for x in batches if shapes(x) == size] or [_first(batches[0], 0)])
        for batches in several
    ]
