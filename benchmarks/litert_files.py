"""LiteRT files of a network and of the same compressed: built-in operators and fused stretches.

    python -m benchmarks.litert_files --models=alexnet,googlenet --rank_ratio=.25 --keep=.5
    python -m benchmarks.litert_files --models=teacher.keras --plans=plan
    python -m benchmarks.litert_files --models=MobileNetV2,ResNet50 --rank_ratio=.5 --batches=1

A name of the zoo or of keras.applications is that network at its default size with random weights,
whose time is that of any others, and without a softmax, which would hide differences. Times are
medians over rounds of the time of the dense file of built-in operators divided by the row's, all
files in turns, each some calls in a row: threads of the one before look for work for some more
milliseconds. "float16" is the fused file with weights of 16 bits, of which those of large dense
layers stay so in memory. "differs" is by how much the compressed network's fused file differs from
Keras, without the delegate and with it, over the largest output; --notimes finds that alone, of
one network of each family of keras.applications:

    python -m benchmarks.litert_files --models=families --rank_ratio=.5 --notimes
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from rich.console import Console

from benchmarks.one_network import FAMILIES
from benchmarks.steps import markdown, put_table, rich_table

_MODELS = flags.DEFINE_list("models", ["alexnet", "googlenet"], "Of the zoo, or files of Keras.")
_PLANS = flags.DEFINE_list("plans", [], "A saved plan for each model; none: a uniform one.")
_RANK_RATIO = flags.DEFINE_float("rank_ratio", 0.25, "Of the uniform plan.", 0.01, 1.0)
_KEEP = flags.DEFINE_float("keep", 0.5, "Of the uniform plan.", 0.01, 1.0)
_BATCHES = flags.DEFINE_list("batches", ["1", "16"], "Images per call.")
_THREADS = flags.DEFINE_list("threads", ["1", "2"], "Of the interpreter.")
_TIMES = flags.DEFINE_bool("times", True, "Measure times, too; one fused file each if not.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Turns of each file.", 3)
_MARKDOWN = flags.DEFINE_string("markdown", None, "A .md file that the table is written into.")

_CHECKS = ("network", "without the delegate", "with it")
_COLUMNS = (
    *("network", "threads", "batch", "dense, ms", "dense fused", "builtin", "fused", "float16"),
    *("fused of builtin", "differs"),
)
_ALL = "families"  # in the place of names: all of FAMILIES
_CHECKED = 2  # images that outputs are compared on
_IN_A_ROW = 8  # calls of a file


def main(_: list[str]) -> None:
    """Prints the table."""
    title, columns, table = "times faster than the dense file", _COLUMNS, "litert_files"
    if not _TIMES.value:
        title, columns, table = "fused files beside Keras", _CHECKS, "litert_checks"
    names = list(FAMILIES) if _MODELS.value == [_ALL] else _MODELS.value
    rows = []
    for index, name in enumerate(names):
        found = _rows(name, _PLANS.value[index] if _PLANS.value else None)
        logging.info("%s", found)
        rows += found
    Console(width=120).print(rich_table(title, columns, rows))
    if _MARKDOWN.value:
        put_table(Path(_MARKDOWN.value), table, markdown(columns, rows))


def _rows(name: str, plan: str | None) -> list[list[str]]:
    """Of one network, one for each number of threads and batch size."""
    model, small = _networks(name, plan)
    if not _TIMES.value:
        return [[Path(name).stem, *_differences(small, _fused_file(small))]]
    files = _files(model, small)
    differs, rows = ", ".join(_differences(small, files[3][0])), []
    for threads, batch in itertools.product(map(int, _THREADS.value), map(int, _BATCHES.value)):
        times = _times(model, files, batch, threads)
        ratios = np.median(times[:, :1] / times, axis=0)
        own = np.median(times[:, 2] / times[:, 3])
        dense = 1e3 * np.median(times[:, 0]) / _IN_A_ROW
        cells = [f"{dense:.2f}", *(f"{ratio:.2f}" for ratio in ratios[1:]), f"{own:.2f}"]
        rows.append([Path(name).stem, str(threads), str(batch), *cells, differs])
    return rows


def _model(name: str) -> Any:
    import keras

    from espace_tf import zoo
    from espace_tf.bin.inputs import models
    from espace_tf.network import graph
    from espace_tf.network.layer_rules import rule

    if name in zoo.__all__:
        return getattr(zoo, name)()
    if not hasattr(keras.applications, name):
        return models.load(Path(name))
    # MobileNetV3 takes maps of any size if no size is given.
    size = {"input_shape": (224, 224, 3)} if name.startswith("MobileNetV3") else {}
    keras.utils.set_random_seed(0)
    network = getattr(keras.applications, name)
    model = network(weights=None, classifier_activation=None, **size)
    random = np.random.default_rng(0)
    for layer in graph.layers(model).values():
        if rule(layer).kind == "batch_norm":  # those of an untrained one let its maps vanish
            layer.set_weights([random.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])
    return model


def _networks(name: str, plan: str | None) -> tuple[Any, Any]:
    """A network and its compressed form, both without what training needs."""
    import espace_tf
    from espace_tf.deploy.inference import inference_copy

    model = _model(name)
    options = {"rank_ratio": _RANK_RATIO.value, "keep": _KEEP.value}
    plan = espace_tf.Plan.load(plan) if plan else espace_tf.Plan.uniform(model, **options)
    return inference_copy(model), inference_copy(espace_tf.apply(model, plan))


def _files(model: Any, small: Any) -> list[tuple[bytes, bool]]:
    """The five files, and whether the delegate is to run each."""
    from espace_tf.deploy import tflite

    files = []
    for each in (model, small):
        files += [(tflite.convert(each), False), (_fused_file(each), True)]
    return [*files, (_fused_file(small, quantize="float16"), True)]


def _fused_file(model: Any, **options: str) -> bytes:
    from espace_tf.deploy import fused_file
    from espace_tf.rewriting.fuse import fuse

    return fused_file.convert(fuse(model, large=False), named=model, **options)


def _runner(
    model: Any, content: bytes, arrays: list[np.ndarray], fused: bool, threads: int
) -> tuple[Any, list]:
    from espace_tf import litert
    from espace_tf.deploy import tflite

    delegates = [litert.delegate(strict=True)] if fused else []
    return tflite.prepare(model, content, arrays, threads=threads, delegates=delegates)


def _differences(small: Any, content: bytes) -> list[str]:
    """Of a fused file, without the delegate and with it."""
    from espace_tf.deploy import comparison
    from espace_tf.network import graph

    arrays, found = comparison.noise(small, _CHECKED), []
    wanted = [np.asarray(each) for each in graph.call(small, arrays)]
    for fused in (False, True):
        interpreter, outputs = _runner(small, content, arrays, fused, int(_THREADS.value[-1]))
        interpreter.invoke()
        pairs = zip(map(interpreter.get_tensor, outputs), wanted, strict=True)
        found.append(max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs))
    return [f"{each:.0e}" for each in found]


def _times(model: Any, files: list[tuple[bytes, bool]], batch: int, threads: int) -> np.ndarray:
    """Seconds of the calls in a row [round, file]."""
    from espace_tf.deploy import comparison
    from espace_tf.timing import measure

    def several(call: Any) -> Any:
        return lambda: [call() for _ in range(_IN_A_ROW)]

    arrays = comparison.noise(model, batch)
    runners = [_runner(model, content, arrays, fused, threads)[0] for content, fused in files]
    return measure.rounds([several(each.invoke) for each in runners], _ROUNDS.value)


if __name__ == "__main__":
    app.run(main)
