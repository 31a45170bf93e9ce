"""How far answers of one network are from those of another, in units of loss."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from espace_tf.objectives.losses import OutputLoss, divergence

# Nats: a head that says the same of every image is taken for one that says this much.
_LEAST_SPREAD = 1e-2


class Distance:
    """From the answers of a given network; 0 where they are the same.

    Of classes the Kullback-Leibler divergence from its own distribution in nats, which is how much
    the loss grows where that distribution is right: never negative, and far less noisy than a
    difference of label losses on few images. Labels that are each a probability: the same, mean
    over the labels. Values: the squared change of each unit over its variance, mean over the units.
    With several outputs those of classes and labels are relative to their own spread too, so that
    all count alike; they are added.

    Args:
        outputs: what is known of each output; those of weight 0 count nothing.
        answers: each output of the given network on all the images, [B, ...].

    Example:
        >>> outputs = losses.of_outputs(model, model(images))
        >>> Distance(outputs, [model(images)])([model(x)], [model(x)])
        0.0
    """

    def __init__(self, outputs: Sequence[OutputLoss], answers: Sequence[np.ndarray | tf.Tensor]):
        self._outputs = outputs
        self._several = sum(output.weight != 0 for output in outputs) > 1
        pairs = zip(outputs, answers, strict=True)
        self._spreads = [_spread(output, np.asarray(values)) for output, values in pairs]

    def signed(self, answers: Sequence[tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
        """A scalar whose changes tell the distance of any small change of the answers.

        A random combination of an image's answers, summed over images: where these change a little
        the mean square of its change is, over the draws, twice the distance. Of a divergence that
        is the quadratic form of Fisher's information, sum_c p_c (d log p_c)^2, with random signs in
        the place of labels drawn from p: those are nearly always the one class that tells nothing.

        Args:
            answers: each output [B, ...] of the given network, differentiable.
            seed: int32 [2], of the signs.
        """
        total = tf.constant(0.0)
        for index, (output, spread, found) in enumerate(
            zip(self._outputs, self._spreads, answers, strict=True)
        ):
            if not output.weight:
                continue
            images = tf.cast(tf.shape(found)[0], tf.float32)
            if output.kind == "values":
                values = tf.reshape(tf.cast(found, tf.float32), [-1, np.size(spread)])
                rows = tf.cast(tf.shape(values)[0], tf.float32) / images
                shares = tf.sqrt(2.0 / (rows * np.size(spread) * tf.cast(spread, tf.float32)))
            else:
                values = output.log_probabilities(found)
                values = tf.reshape(values, [-1, values.shape[-1]])
                rows = tf.cast(tf.shape(values)[0], tf.float32) / images
                weight = 1.0 / spread if self._several else output.weight
                shares = tf.sqrt(tf.stop_gradient(tf.exp(values)) * weight / rows)
            draw = tf.random.stateless_normal(tf.shape(values), seed + [index, 0])
            total += tf.reduce_sum(tf.sign(draw) * shares * values)
        return total

    def __call__(self, before: Sequence[tf.Tensor], after: Sequence[tf.Tensor]) -> float:
        """The mean distance per image of each output [B, ...] before and after."""
        total = 0.0
        for output, spread, a, b in zip(self._outputs, self._spreads, before, after, strict=True):
            if not output.weight:
                continue
            if output.kind == "values":
                change = np.square(_units(np.asarray(a)) - _units(np.asarray(b)))
                total += float((change.mean(axis=(0, 1)) / spread).mean())
                continue
            change = float(divergence(output.log_probabilities(a), output.log_probabilities(b)))
            total += change / spread if self._several else output.weight * change
        return total


def _spread(output: OutputLoss, values: np.ndarray) -> np.ndarray | float:
    """How far an output differs from image to image: the unit of its damage.

    Of values the variance of each unit [C] over the images, mean over the positions of a map. A
    unit that is constant but for rounding takes the mean of the others. Of classes and labels the
    divergence of the images' distributions from the mean one (Lin 1991, "Divergence measures based
    on the Shannon entropy", equation 5.1).
    """
    if output.kind == "values":
        values = _units(values)
        spread, power = values.var(axis=0).mean(axis=0), np.square(values).mean(axis=(0, 1))
        varies = spread > 1e-10 * power
        usual = spread[varies].mean() if varies.any() else power.mean() or 1.0
        return np.where(varies, spread, usual)
    logs = tf.cast(output.log_probabilities(values), tf.float64)
    mean = tf.math.log(tf.reduce_mean(tf.exp(logs), axis=0))
    return max(float(divergence(logs, mean)), _LEAST_SPREAD)


def _units(values: np.ndarray) -> np.ndarray:
    """[B, positions, C] float64 of any output [B, ..., C] or [B]."""
    channels = values.shape[-1] if values.ndim > 1 else 1
    return np.asarray(values, np.float64).reshape(len(values), -1, channels)
