"""Models side by side: milliseconds, multiply-accumulates, parameters, how far outputs differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.checks import check_count, check_text, check_threads
from espace_tf.config import check_runtime, require_runtime
from espace_tf.data.batches import batches, in_order, named_inputs
from espace_tf.deploy import comparison
from espace_tf.network import costs, graph
from espace_tf.timing import measure, runtimes


@dataclass(frozen=True)
class Row:
    """One model of a benchmark.

    Attributes:
        name: the model's name, made distinct if it is another model's too.
        milliseconds: median time of one call on a batch.
        ratio: time divided by the first model's, median over turns; 0.25 is four times as fast.
        error: of the ratio, relative to it, two standard errors: what another measurement in this
            process may differ by. Another process finds some per cent more or less besides.
        macs: multiply-accumulates per image; None if they depend on a size that the model leaves
            open.
        parameters: weights of the model.
        max_difference: largest absolute difference from the first model's outputs, divided by the
            first model's largest absolute output; NaN if an output is; None if the outputs have
            other shapes.
        inputs: what it ran on: "given" inputs, or "noise", on which networks differ more.
    """

    name: str
    milliseconds: float
    ratio: float
    macs: int | None
    parameters: int
    max_difference: float | None
    inputs: str = "noise"
    error: float | None = None

    @property
    def speedup(self) -> float:
        """How many times faster than the first model: 1 / ratio."""
        return 1 / self.ratio


def benchmark(
    model: Any,
    *baselines: Any,
    batch_size: int = 1,
    runtime: Any = "tf",
    threads: int | None = None,
    inputs: Any = None,
    names: Sequence[str] | None = None,
    repeats: int = 30,
) -> list[Row]:
    """Times models in turn, call by call, so that whatever else the machine does hits all alike.

    What is timed is what would be deployed: every model in the form that `strip` gives it, which
    for a compressed Keras 3 model and runtime "tf" has fused graphs.

    Args:
        model: a Keras 3 or tf_keras model, what the others are compared with.
        *baselines: further models that take the same inputs.
        batch_size: images per call.
        runtime: "tf", a traced function; "litert", the model exported as `export_tflite` does; or
            what else `EspaceConfig` takes.
        threads: CPU threads; None: what the runtime takes by itself.
        inputs: typical inputs, in the forms that `analyze` takes; the first batch_size of them are
            run, and outputs compared on them. A model of open size needs them. None: seeded noise
            in [0, 1).
        names: one a model, instead of the models' own.
        repeats: timed calls of each model; the median counts. Ten times as many make the error of
            the ratio about a third.

    Returns:
        One row per model, in the order given.

    Raises:
        TypeError: not a Keras model.
        ValueError: an argument makes no sense, models take different inputs, or the inputs' size
            is not known.
        ImportError: the runtime is not installed.

    Example:
        >>> for row in benchmark(model, small):
        ...     print(f"{row.name}: {row.milliseconds:.2f} ms, {row.speedup:.2f} times as fast")
        network: ... ms, 1.00 times as fast
        network_1: ... ms, ... times as fast
    """
    models = (model, *baselines)
    _check_models(models)
    names = _checked_names(models, names)
    require_runtime(check_runtime(runtime))
    check_count(batch_size, "batch_size")
    check_count(repeats, "repeats")
    check_threads(threads)
    arrays = _batch(model, batch_size, inputs)
    ran = [runtimes.find(runtime).form(each) for each in models]
    runs = [runtimes.runner(each, arrays, runtime, threads) for each in ran]
    outputs = [read() for _, read in runs]
    times = measure.rounds([run for run, _ in runs], repeats)
    medians = np.median(1e3 * times, axis=0).tolist()
    ratios = [measure.with_error(each) for each in (times / times[:, :1]).T]
    measured = zip(models, names, medians, ratios, outputs, strict=True)
    return [
        Row(
            *(name, median, ratio.value, _macs(each), each.count_params()),
            max_difference=_difference(outputs[0], found),
            inputs="noise" if inputs is None else "given",
            error=ratio.error if len(times) > 1 else None,
        )
        for each, name, median, ratio, found in measured
    ]


def _check_models(models: Sequence[Any]) -> None:
    """Raises unless all are models that take the same inputs."""
    for model in models:
        graph.library(model)
        graph.check_eager(model)
        if not model.built or not model.inputs:
            raise ValueError(
                f"model {model.name!r} has no known inputs: call it on data, or give it an Input"
            )
        first, own = ([tuple(t.shape[1:]) for t in each.inputs] for each in (models[0], model))
        fits = (tf.TensorShape(a).is_compatible_with(b) for a, b in zip(first, own, strict=False))
        if len(first) != len(own) or not all(fits):
            raise ValueError(
                f"models must take the same inputs. Received: {first} by {models[0].name!r}, "
                f"{own} by {model.name!r}"
            )


def _checked_names(models: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    """Names given, or the models' own with a number where two are alike."""
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(f"names must be a list of texts. Received: {names!r}")
        for name in names:
            check_text(name, "a name")
        if len(names) != len(models) or len(set(names)) != len(names):
            raise ValueError(
                f"names must be {len(models)} different ones, one a model. Received: {names!r}"
            )
        return list(names)
    own = [model.name for model in models]
    earlier = [own[:index].count(name) for index, name in enumerate(own)]
    return [f"{name}_{taken}" if taken else name for name, taken in zip(own, earlier, strict=True)]


def _batch(model: Any, batch_size: int, inputs: Any) -> list[np.ndarray]:
    """One array per input of the model, of `batch_size` examples."""
    if inputs is None:
        return comparison.noise(model, batch_size)
    options = {"inputs": named_inputs(model), "name": "inputs"}
    batch, _ = next(batches(inputs, batch_size, batch_size, **options))
    arrays = in_order(model, batch)
    if len(arrays[0]) < batch_size:
        raise ValueError(
            f"inputs must hold at least the {batch_size} examples that batch_size says. "
            f"Received: {len(arrays[0])}"
        )
    return arrays


def _macs(model: Any) -> int | None:
    try:
        return costs.macs(model)
    except ValueError:  # They depend on a size that the model leaves open.
        return None


def _difference(first: list[np.ndarray], found: list[np.ndarray]) -> float | None:
    if [array.shape for array in first] != [array.shape for array in found]:
        return None
    first, found = (np.concatenate([each.ravel() for each in all]) for all in (first, found))
    # NumPy's max hands a NaN on, Python's drops it or not by its place; integers would wrap.
    largest, distance = np.abs(first).max(), np.abs(first - found.astype(float)).max()
    return float(distance / max(largest, np.finfo(np.float32).tiny))
