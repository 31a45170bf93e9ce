"""Milliseconds: medians of calls taken in turns, on TensorFlow or LiteRT."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.deploy import tflite
from espace_tf.deploy.comparison import noise
from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D
from espace_tf.network import graph
from espace_tf.records.site import Site

_WARMUP = 2


def alternate(
    calls: Sequence[Callable[[], Any]],
    *,
    repeats: int = 30,
    seconds: float | None = None,
    least: int = 3,
) -> list[float]:
    """Median milliseconds of each call, all taken in turns.

    Whatever else the machine does hits every one of them alike, so that ratios are sound where
    single times are not.

    Args:
        calls: functions without arguments that return when the work is done.
        repeats: rounds after two rounds of warming up.
        seconds: no further round is begun after this time, but `least` are always taken.
        least: rounds after which the time may end it.

    Example:
        >>> fast, slow = alternate([lambda: model(x), lambda: other(x)], repeats=10)
    """
    return (1e3 * np.median(rounds(calls, repeats, seconds, least), axis=0)).tolist()


def ratio(
    slow: Callable[[], Any], fast: Callable[[], Any], *, repeats: int, seconds: float
) -> float:
    """How many times longer one call takes than another: the median over rounds of both.

    A machine that others use too is fast in one minute and slow in the next. Such a phase
    multiplies both times of a round by the same factor, which the round's ratio does not hold, and
    the two medians of the times do: they may be of different phases. Interruptions that hit one
    call only, the first as often as the second, throw a ratio up or down, and the median leaves
    both out.

    Args:
        slow, fast: functions without arguments that return when the work is done.
        repeats: rounds at most, after two rounds of warming up.
        seconds: no further round is begun after this time, but three are always taken.
    """
    first, second = rounds([slow, fast], repeats, seconds, 3).T
    return float(np.median(first / second))


def rounds(
    calls: Sequence[Callable[[], Any]],
    repeats: int,
    seconds: float | None = None,
    least: int = 3,
) -> np.ndarray:
    """Seconds [round, call] of calls in turns; the arguments are those of `alternate`."""
    for call in list(calls) * _WARMUP:
        call()
    found: list[list[float]] = []
    end = None if seconds is None else time.perf_counter() + seconds
    while len(found) < repeats:
        if end is not None and len(found) >= least and time.perf_counter() > end:
            break
        found.append([_seconds(call) for call in calls])
    return np.array(found)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def runner(
    model: Any, arrays: Sequence[np.ndarray], runtime: str, threads: int | None = None
) -> tuple[Callable[[], Any], Callable[[], list[np.ndarray]]]:
    """A call of a model to be timed, and one that gives its outputs.

    Args:
        model: a Keras 3 or tf_keras model.
        arrays: one batch for each input.
        runtime: "tf", a traced function; or "litert", the model converted as it is.
        threads: CPU threads; None: what the runtime takes by itself.

    Raises:
        ValueError: TensorFlow already runs with another number of threads.
    """
    if runtime == "litert":
        content = tflite.convert(model)
        return tflite.prepare(model, content, list(arrays), threads=threads)
    set_threads(threads)
    tensors = [tf.constant(array) for array in arrays]
    run, function = _synchronous(lambda *inputs: graph.call(model, inputs), tensors)
    return run, lambda: [output.numpy() for output in function(*tensors)]


def _synchronous(
    call: Callable[..., Any], tensors: list[tf.Tensor]
) -> tuple[Callable[[], None], Callable]:
    """Traces a call; a run of it on these tensors that ends when the work does, and the trace."""
    function = tf.function(call, autograph=False).get_concrete_function(*tensors)

    def run() -> None:
        function(*tensors)
        if tf.config.list_logical_devices("GPU"):  # On a CPU the call returns when all is done.
            tf.test.experimental.sync_devices()

    return run, function


def nothing(arrays: Sequence[np.ndarray]) -> Callable[[], Any]:
    """A call of a traced function that does nothing with these inputs: what calling costs."""
    tensors = [tf.constant(array) for array in arrays]
    function = tf.function(lambda *inputs: [inputs[0][:1]]).get_concrete_function(*tensors)
    return lambda: function(*tensors)


def set_threads(threads: int | None) -> None:
    """Makes TensorFlow compute with this many threads, while it still can.

    Raises:
        ValueError: TensorFlow has computed something already, with another number.
    """
    if threads is None or tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise ValueError(
            f"threads={threads} must be set before TensorFlow computes anything: call "
            f"tf.config.threading.set_intra_op_parallelism_threads({threads}) at the start of the "
            "program, or use runtime='litert'"
        ) from error


def single_layer(
    site: Site,
    *,
    rank: int | None = None,
    order: str = "vertical",
    positions: np.ndarray | None = None,
    dense: type = keras.layers.Conv2D,
) -> keras.layers.Layer:
    """A convolution like a site's, of its dtype policy, with random weights, to be timed.

    Args:
        site: the convolution.
        rank, order, positions: as in a LayerPlan.
        dense: the class where rank and positions are None: the layer as it is.
    """
    options = {
        "filters": site.filters,
        "kernel_size": site.kernel_size,
        "strides": site.strides,
        "dilation_rate": site.dilation_rate,
        "padding": site.padding,
        "groups": site.groups,
        "data_format": "channels_last",
        "activation": "relu",
        "dtype": site.policy,  # whatever the policy of the process is
    }
    if rank is not None:
        return DecomposedConv2D(rank=rank, order=order, positions=positions, **options)
    if positions is not None:
        return MaskedConv2D(positions=positions, **options)
    return dense(**options)


def layer_runner(
    layer: keras.layers.Layer, shape: tuple[int, ...], runtime: str, threads: int | None = None
) -> Callable[[], Any]:
    """A call of one new layer on a batch of noise of this shape, to be timed; else as `runner`.

    LiteRT computes in float32 whatever the layer's policy is; TensorFlow is given noise of the type
    that the layer computes in.
    """
    if runtime == "litert":
        layer.dtype_policy = "float32"
        model = keras.Sequential([keras.Input(shape[1:], dtype="float32"), layer])
        return runner(model, noise(model, shape[0]), runtime, threads)[0]
    # Without a model around the layer, which would take longer to build than all calls of it.
    set_threads(threads)
    layer.build(shape)
    x = tf.cast(np.random.default_rng(0).random(shape), layer.compute_dtype)
    return _synchronous(lambda x: layer(x, training=False), [x])[0]
