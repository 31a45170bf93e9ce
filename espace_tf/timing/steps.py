"""Milliseconds of a convolution's options as steps of a fused graph, which is where they will run.

There a layer finds its input in the cache and shares one call with its neighbours; timed as an
operation of its own it would pay for threads and memory that it never waits for.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.config import EspaceConfig
from espace_tf.deploy import comparison
from espace_tf.keras_layers import FusedGraph
from espace_tf.kernels.loader import operations_now
from espace_tf.kernels.program import CONVOLVE, MAX, SUM, ProgramBuilder
from espace_tf.network import graph
from espace_tf.timing import measure, runtimes

_REPEATS = 15
# For whole networks: of a small one many calls, since interruptions come in bursts.
_ROUNDS = 300
_SECONDS = 5.0


def step_times(
    layers: Sequence[keras.layers.Layer],
    shape: tuple[int, int, int, int],
    *,
    threads: int = 0,
    seconds: float | None = None,
) -> list[float]:
    """Median milliseconds of convolutions that read one input, as steps of one program.

    All of them run one after the other in every call, so that noise hits them alike.

    Args:
        layers: MaskedConv2D or DecomposedConv2D of one group; their weights are not needed. Without
            positions and rank a MaskedConv2D is the plain convolution.
        shape: of the input, [B, H, W, C].
        threads: at most so many; 0: all that TensorFlow has.
        seconds: no further call is begun after this time, but three are always made.
    """
    run, owners = _program(layers, shape, threads)
    found = []
    measure.alternate([lambda: found.append(run())], repeats=_REPEATS, seconds=seconds)
    steps = np.median(found[2:], axis=0) / 1e6
    return np.bincount(owners, steps, len(layers) + 1)[1:].tolist()


def network_times(
    plain: Callable[[], Any], fused: keras.Model, paths: Collection[str], config: EspaceConfig
) -> tuple[float, float, float]:
    """Milliseconds of a network, of the same in fused graphs, and of all but some layers there.

    All three in turns: the difference of two times of other minutes would be noise.

    Args:
        plain: a call of the stripped model.
        fused: what `rewriting.fuse` made of that model.
        paths: of convolutions that are in fused graphs; the third time is without them.
        config: batch size, threads, and the size of inputs that the network leaves open.
    """
    arrays = comparison.noise(fused, config.batch_size, config.input_size)
    inside: list[float] = []
    runtime = runtimes.find(config.runtime)
    threads = runtime.step_threads(config.threads)
    profiles = [
        _profile(layer, path.removesuffix(layer.name), paths, config.batch_size, threads)
        for path, layer in graph.layers(fused).items()
        if isinstance(layer, FusedGraph)
    ]
    whole = plain
    if not runtime.fuses_all:
        whole = runtimes.runner(fused, arrays, config.runtime, config.threads)[0]
    calls = [plain, whole]
    calls.append(lambda: inside.append(sum(profile() for profile in profiles)))
    plain_ms, fused_ms, _ = measure.alternate(calls, repeats=_ROUNDS, seconds=_SECONDS)
    return plain_ms, fused_ms, max(fused_ms - float(np.median(inside[2:])), 0.0)


def _profile(
    layer: FusedGraph, prefix: str, paths: Collection[str], batch_size: int, threads: int
) -> Callable[[], float]:
    """A call of a fused graph on noise that returns the milliseconds of some of its layers.

    Args:
        prefix: what their paths have before their names.
    """
    generator = np.random.default_rng(0)
    inputs = [
        tf.constant(generator.random((batch_size, *tensor.shape[1:])), tf.float32)
        for tensor in layer.model.inputs
    ]
    program = tf.make_tensor_proto(layer.program.words)
    weights, outputs = layer.program_weights(), len(layer.program.outputs)
    which = np.array([f"{prefix}{name}" in paths for name in layer.step_layers()])

    def call(*inputs: tf.Tensor) -> tf.Tensor:
        _, nanoseconds = operations_now().espace_fused_graph(
            inputs=list(inputs),
            weights=weights,
            program=program,
            outputs=outputs,
            profile=True,
            threads=threads,
        )
        return nanoseconds

    run = tf.function(call, autograph=False).get_concrete_function(*inputs)
    return lambda: float(run(*inputs).numpy()[which].sum()) / 1e6


def _program(
    layers: Sequence[keras.layers.Layer], shape: tuple[int, int, int, int], threads: int
) -> tuple[Callable[[], np.ndarray], list[int]]:
    """A call that returns the nanoseconds of each step, and the layer that each belongs to, from 1.

    The first step copies the input: like the output of a layer before it, it lies in the cache.
    """
    _, height, width, channels = shape
    builder, generator = ProgramBuilder(), np.random.default_rng(0)
    weights: list[tf.Tensor] = []

    def weight(*sizes: int) -> int:
        values = (generator.random(sizes, np.float32) - 0.5) / np.sqrt(sizes[0], dtype=np.float32)
        weights.append(tf.constant(values))
        return builder.weight(weights[-1].shape.num_elements())

    given = builder.input(height * width, channels)
    copied = builder.step(SUM, [given], height * width, channels)
    owners = [0]
    for number, layer in enumerate(layers, 1):
        rows, value = channels, copied
        for _, filters, index_map in layer.index_maps((height, width)):
            value = builder.step(
                CONVOLVE,
                [value],
                index_map.rows_out,
                filters,
                filter=weight(index_map.table.shape[1] * rows, filters),
                bias=weight(filters),
                table=index_map.table,
                spread=index_map.spread,
                activation="relu",
            )
            owners.append(number)
            rows = filters
    first = np.zeros((1, 1), np.int32)
    builder.output(builder.step(MAX, [copied], 1, channels, table=first))
    owners.append(0)
    program = tf.make_tensor_proto(builder.words())
    x = tf.constant(generator.random(shape), tf.float32)

    def call(x: tf.Tensor) -> tf.Tensor:
        _, nanoseconds = operations_now().espace_fused_graph(
            inputs=[x],
            weights=weights,
            program=program,
            outputs=1,
            profile=True,
            threads=threads,
        )
        return nanoseconds

    run = tf.function(call, autograph=False).get_concrete_function(x)
    return lambda: run(x).numpy(), owners
