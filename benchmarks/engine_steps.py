"""The steps of fused graphs: their arithmetic, their memory, and the time that the engine tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.keras_layers import DecomposedConv2D, FusedGraph, MaskedConv2D
from espace_tf.kernels import program
from espace_tf.kernels.loader import operations_now
from espace_tf.network import graph
from espace_tf.timing.steps import step_times

_SHAPES = Path(__file__).parent / "shapes"

_KINDS = {
    getattr(program, name): name.lower()
    for name in (
        *("CONVOLVE", "DEPTHWISE", "MAX", "AVERAGE", "SUM"),
        *("PRODUCT", "SOFTMAX", "BLEND", "SHUFFLE"),
    )
}
_OPERATIONS = {program.CONVOLVE: 2, program.DEPTHWISE: 2}  # of others: one for each number read


@dataclass(frozen=True)
class Step:
    """One step, of one image.

    Attributes:
        kind: "convolve", "max", ...
        shape: [rows that are computed, taps, channels, filters].
        operations: floating point operations; a multiply-accumulate is two.
        bytes: of the rows that it reads, each once, and of those that it writes.
        filter_bytes: of its filter, whatever the batch is.
    """

    kind: str
    shape: tuple[int, int, int, int]
    operations: int
    bytes: int
    filter_bytes: int

    def __str__(self) -> str:
        rows, taps, channels, filters = self.shape
        return f"{self.kind} {rows}x{taps}x{channels}" + (
            f" -> {filters}" if self.kind == "convolve" else ""
        )


def read_steps(words: np.ndarray) -> list[Step]:
    """The steps of a program, in their order."""
    words = np.asarray(words, np.int64)
    _, _, _, weights, tensors, tables, steps, _ = words[:8]
    sizes, at = words[8 : 8 + weights], 8 + weights
    maps = words[at : at + 6 * tensors].reshape(-1, 6)[:, 3:5]  # rows, channels
    at += 6 * tensors
    reads = []
    for _ in range(tables):
        rows, taps = words[at : at + 2]
        reads.append(words[at + 2 : at + 2 + rows * taps].reshape(rows, taps))
        at += 2 + rows * taps
    found = []
    for _ in range(steps):
        kind, _, out, kernel, _, _, table, _, count = words[at : at + program.STEP_WORDS]
        ins = words[at + program.STEP_WORDS : at + program.STEP_WORDS + count]
        at += program.STEP_WORDS + count
        found.append(
            _step(
                int(kind),
                [maps[each] for each in ins],
                maps[out],
                reads[table] if table >= 0 and kind != program.SHUFFLE else None,
                int(sizes[kernel]) if kernel >= 0 else 0,
            )
        )
    return found


def _step(kind: int, ins: Sequence, out: Any, table: np.ndarray | None, kernel: int) -> Step:
    (rows_out, filters), channels = map(int, out), int(ins[0][1])
    if table is None:
        shape = rows_out, len(ins), channels, filters
        read = sum(int(rows) * channels for rows, channels in ins)
    else:
        shape = *table.shape, channels, filters
        read = len(np.unique(table[table >= 0])) * channels
    operations = _OPERATIONS.get(kind, 1) * int(np.prod(shape[:3]))
    if kind == program.CONVOLVE:
        operations *= filters
    name = _KINDS.get(kind, f"kind {kind}")
    return Step(name, shape, operations, 4 * (read + rows_out * filters), 4 * kernel)


class Profile:
    """Calls of the fused graphs of a model on noise, with the time of each step.

    Args:
        model: with FusedGraph layers.
        batch_size: images per call.

    Attributes:
        steps: of all of them, one graph after the other.
        calls: their nanoseconds, one array [steps] for each call.
    """

    def __init__(self, model: keras.Model, batch_size: int):
        layers = [each for each in graph.layers(model).values() if isinstance(each, FusedGraph)]
        self.steps = [step for each in layers for step in read_steps(each.program.words)]
        self.calls: list[np.ndarray] = []
        self._runs = [_profiled(layer, batch_size) for layer in layers]

    def __call__(self) -> None:
        """Calls each of them once."""
        self.calls.append(np.concatenate([run() for run in self._runs]))


def _profiled(layer: FusedGraph, batch_size: int) -> Any:
    generator = np.random.default_rng(0)
    inputs = [
        tf.constant(generator.random((batch_size, *tensor.shape[1:])), tf.float32)
        for tensor in layer.model.inputs
    ]
    words, weights = tf.make_tensor_proto(layer.program.words), layer.program_weights()

    def call(*inputs: tf.Tensor) -> tf.Tensor:
        return operations_now().espace_fused_graph(
            inputs=list(inputs),
            weights=weights,
            program=words,
            outputs=len(layer.program.outputs),
            profile=True,
        )[1]

    run = tf.function(call, autograph=False).get_concrete_function(*inputs)
    return lambda: run(*inputs).numpy()


def pairs(network: str, batch_size: int, threads: int) -> list[float]:
    """Of each larger convolution of a network its pair of a quarter of the multiplications.

    Returns:
        The time of the pair over a share of the whole convolution's: that of the multiplications.
        Both are steps of one program. Empty for networks without a file in benchmarks/shapes.
    """
    path, found = _SHAPES / f"{network}.txt", []
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        if line.startswith("#"):
            continue
        height, width, channels, filters, kh, kw, stride, padding, _ = map(int, line.split())
        if kh * kw == 1:
            continue
        options = {
            "filters": filters,
            "kernel_size": (kh, kw),
            "strides": stride,
            "padding": "same" if padding else "valid",
        }
        dense = MaskedConv2D(**options)
        shape = (batch_size, height, width, channels)
        _, rows, columns, _ = dense.compute_output_shape(shape)
        whole = rows * columns * kh * kw * channels * filters
        of_rank = rows * (width * kh * channels + columns * kw * filters)
        rank = whole // 4 // of_rank
        if rank < 1:
            continue
        small = DecomposedConv2D(rank=rank, **options)
        first, second = step_times([dense, small], shape, threads=threads, seconds=1)
        found.append(second / first / (rank * of_rank / whole))
    return found
