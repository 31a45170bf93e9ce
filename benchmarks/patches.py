"""The convolutions of a trained network with sampled patches and their factorisations."""

import functools
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf

from espace_tf.bin.inputs.array_files import Data
from espace_tf.kernels.index_map import Geometry, conv_table
from espace_tf.numerics import low_rank
from espace_tf.numerics.factors import reconstruct

Choice = tuple[str, int]  # order, rank


@dataclass(eq=False)
class Layer:
    """One convolution, its statistics, and its factorisations."""

    name: str
    kernel: np.ndarray
    groups: int
    geometry: Geometry
    held_out: list[np.ndarray] = field(default_factory=list)  # [n, g, d] each
    patches: int = 0
    sums: np.ndarray | None = None  # [g, d]
    squares: np.ndarray | None = None  # [g, d, d]
    gradient: np.ndarray | None = None  # [N, N]

    @property
    def dimension(self) -> int:
        """Size of one group's patch."""
        return int(np.prod(self.kernel.shape[:3]))

    @property
    def macs(self) -> int:
        """Multiply-adds of the convolution as it is."""
        return self.geometry.rows_out * self.kernel.size

    def rank_macs(self, order: str) -> int:
        """Multiply-adds of the pair per unit of rank."""
        (kh, kw), (out_height, out_width) = self.geometry.kernel_size, self.geometry.output_size
        height, width = self.geometry.input_size
        channels, filters = self.kernel.shape[2] * self.groups, self.kernel.shape[3]
        if order == "vertical":
            return out_height * (width * kh * channels + out_width * kw * filters)
        return out_width * (height * kw * channels + out_height * kh * filters)

    def rank_at(self, order: str, ratio: float) -> int:
        """The largest rank of at most 1 / ratio of the multiply-adds; 0 if there is none."""
        return int(self.macs / ratio // self.rank_macs(order))

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """[g, d]."""
        return self.sums / self.patches

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """[g, d, d]."""
        outer = self.mean[:, :, None] * self.mean[:, None, :]
        return self.squares / self.patches - outer

    @functools.cache  # noqa: B019 the layers live as long as the program
    def decomposition(self, kind: str, order: str) -> low_rank.Decomposition:
        """kind: "plain", "aware" (of the responses) or "loss" (of the loss gradient too)."""
        moments = {"mean": list(self.mean), "covariance": list(self.covariance)}
        if kind == "loss":
            moments["gradient"] = self.gradient
        moments = {} if kind == "plain" else moments
        return low_rank.decompose(self.kernel, order, self.groups, **moments)

    def approximation(self, kind: str, choice: Choice) -> tuple[np.ndarray, np.ndarray | None]:
        """The kernel that the pair amounts to, and what it adds to the bias."""
        order, rank = choice
        factors = self.decomposition(kind, order).factors(rank)
        return reconstruct(factors, order, self.groups), factors.bias

    def held_out_error(self, kind: str, choice: Choice, *, centred: bool = False) -> float:
        """E |y - y~|^2 on the held-out patches over the variance of y.

        Args:
            kind, choice: the pair; its bias correction counts.
            centred: takes the mean of y - y~ off, as the best possible bias would.
        """
        kernel, bias = self.approximation(kind, choice)
        patches = np.concatenate(self.held_out)
        change, whole = (
            self._responses(patches, part) for part in (self.kernel - kernel, self.kernel)
        )
        if bias is not None:
            change = change - bias
        if centred:
            change = change - change.mean(axis=0)
        return float(np.square(change).sum() / np.square(whole - whole.mean(axis=0)).sum())

    def _responses(self, patches: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        weights = kernel.reshape(self.dimension, self.groups, -1)
        return np.concatenate([patches[:, g] @ weights[:, g] for g in range(self.groups)], axis=1)


def layers_of(model: keras.Model) -> list[Layer]:
    """The k x k convolutions of a flat model."""
    if isinstance(model, keras.Sequential):  # of a loaded one a layer's output is another graph's
        raise ValueError(f"{model.name} must be Functional. Received: a Sequential one")
    found = []
    for layer in model.layers:
        if type(layer) is keras.layers.Conv2D and max(layer.kernel_size) > 1:
            geometry = Geometry(
                kernel_size=layer.kernel_size,
                input_size=layer.input.shape[1:3],
                strides=layer.strides,
                dilation_rate=layer.dilation_rate,
                padding=layer.padding,
            )
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            found.append(Layer(layer.name, kernel, layer.groups, geometry))
    if not found:
        raise ValueError(f"{model.name} must be flat and have k x k convolutions. It has none.")
    return found


def sampled_patches(layer: Layer, inputs: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[B * positions, g, d] float32 patches that the layer reads."""
    rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    rows = np.concatenate([rows, np.zeros_like(rows[:, :1])], axis=1)  # -1 reads zeros
    patches = rows[:, conv_table(layer.geometry, positions)]
    patches = patches.reshape(len(inputs) * len(positions), patches.shape[2], layer.groups, -1)
    return patches.swapaxes(1, 2).reshape(len(patches), layer.groups, -1)


def collect(
    model: keras.Model,
    layers: list[Layer],
    data: Data,
    *,
    images: int,
    per_dimension: float,
    held_out: int,
    batch: int,
    seed: int,
) -> None:
    """Fills in the statistics: calibration on training images, held-out patches on test images.

    Args:
        model: has class scores (logits) as its only output.
        layers: its convolutions.
        data: labelled.
        images: how many training images to calibrate on.
        per_dimension: calibration patches per patch dimension.
        held_out: held-out patches per layer, from 100 test images.
        batch: images per batch.
        seed: of the sampled positions.
    """
    rng = np.random.default_rng(seed)
    convolutions = [model.get_layer(layer.name) for layer in layers]
    inputs, outputs = ([getattr(c, side) for c in convolutions] for side in ("input", "output"))
    features = keras.Model(model.inputs, [inputs, outputs, model.outputs[0]])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    @tf.function(reduce_retracing=True)
    def observe(x, y):
        with tf.GradientTape() as tape:
            read, written, scores = features([x], training=False)
            loss = cross_entropy(y, scores)
        return read, tape.gradient(loss, written)

    for start in range(0, images, batch):
        part = slice(start, min(start + batch, images))
        for layer, x, gradient in zip(layers, *observe(data.x[part], data.y[part]), strict=True):
            positions = _positions(layer, per_dimension * layer.dimension / images, rng)
            _accumulate(layer, x.numpy(), gradient.numpy(), positions)
    readers = keras.Model(model.inputs, inputs)
    unseen = data.x_test[:: max(len(data.x_test) // 100, 1)][:100]
    for start in range(0, len(unseen), batch):
        read = keras.tree.flatten(readers([unseen[start : start + batch]], training=False))
        for layer, x in zip(layers, read, strict=True):
            positions = _positions(layer, held_out / len(unseen), rng)
            layer.held_out.append(sampled_patches(layer, x.numpy(), positions))


def _positions(layer: Layer, wanted: float, rng: np.random.Generator) -> np.ndarray:
    total = layer.geometry.rows_out
    return np.sort(rng.choice(total, min(int(np.ceil(wanted)), total), replace=False))


def _accumulate(
    layer: Layer, inputs: np.ndarray, gradient: np.ndarray, positions: np.ndarray
) -> None:
    patches = sampled_patches(layer, inputs, positions)
    if layer.sums is None:
        layer.sums = np.zeros(patches.shape[1:])
        layer.squares = np.zeros((layer.groups, layer.dimension, layer.dimension))
        layer.gradient = np.zeros((layer.kernel.shape[3],) * 2)
    layer.patches += len(patches)
    layer.sums += patches.sum(axis=0, dtype=np.float64)
    for group in range(layer.groups):
        part = patches[:, group].astype(np.float64)
        layer.squares[group] += part.T @ part
    rows = gradient.reshape(len(gradient), -1, gradient.shape[-1])[:, positions]
    rows = rows.reshape(-1, gradient.shape[-1]).astype(np.float64)
    layer.gradient += rows.T @ rows
