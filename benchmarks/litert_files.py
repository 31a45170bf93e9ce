"""LiteRT files of a network and of the same compressed: built-in operators and fused stretches.

    python -m benchmarks.litert_files --models=alexnet,googlenet --rank_ratio=.25 --keep=.5
    python -m benchmarks.litert_files --models=teacher.keras --plans=plan

A name of the zoo is that network with random weights, whose time is that of any others. Every row
is the median over rounds of the time of the dense file of built-in operators divided by the row's,
all files in turns.
"""

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

_MODELS = flags.DEFINE_list("models", ["alexnet", "googlenet"], "Of the zoo, or files of Keras.")
_PLANS = flags.DEFINE_list("plans", [], "A saved plan for each model; none: a uniform one.")
_RANK_RATIO = flags.DEFINE_float("rank_ratio", 0.25, "Of the uniform plan.", 0.01, 1.0)
_KEEP = flags.DEFINE_float("keep", 0.5, "Of the uniform plan.", 0.01, 1.0)
_BATCHES = flags.DEFINE_list("batches", ["1", "16"], "Images per call.")
_THREADS = flags.DEFINE_integer("threads", 2, "Of the interpreter.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Calls of each file.", 3)


def main(_) -> None:
    """Prints the table."""
    table = Table(title=f"times faster than the dense file, {_THREADS.value} threads")
    for name in ("network", "batch", "dense, ms", "dense fused", "builtin", "fused", "of builtin"):
        table.add_column(name)
    for index, name in enumerate(_MODELS.value):
        files, model = _files(name, _PLANS.value[index] if _PLANS.value else None)
        for batch in map(int, _BATCHES.value):
            times = _times(model, files, batch)
            ratios = np.median(times[:, :1] / times, axis=0)
            own = np.median(times[:, 2] / times[:, 3])
            dense = 1e3 * np.median(times[:, 0])
            cells = [f"{dense:.2f}", *(f"{ratio:.2f}" for ratio in ratios[1:]), f"{own:.2f}"]
            table.add_row(name, str(batch), *cells)
    Console().print(table)


def _files(name: str, plan: str | None) -> tuple[list[tuple[bytes, bool]], object]:
    """Contents of the four files, whether the delegate is to run each, and a model like them."""
    import keras

    import espace_tf
    from espace_tf import zoo
    from espace_tf.deploy import fused_file, tflite
    from espace_tf.deploy.inference import inference_copy
    from espace_tf.rewriting.fuse import fuse

    model = getattr(zoo, name)() if name in zoo.__all__ else keras.models.load_model(name)
    options = {"rank_ratio": _RANK_RATIO.value, "keep": _KEEP.value}
    plan = espace_tf.Plan.load(plan) if plan else espace_tf.Plan.uniform(model, **options)
    files = []
    for each in (model, espace_tf.apply(model, plan)):
        plain = inference_copy(each)
        files.append((tflite.convert(plain), False))
        files.append((fused_file.convert(fuse(plain), named=plain), True))
    return files, inference_copy(model)


def _times(model: object, files: list[tuple[bytes, bool]], batch: int) -> np.ndarray:
    """Seconds [round, file]."""
    from espace_tf import litert
    from espace_tf.deploy import comparison, tflite
    from espace_tf.timing import measure

    arrays = comparison.noise(model, batch)
    calls = []
    for content, fused in files:
        delegates = [litert.delegate(strict=True)] if fused else []
        options = {"threads": _THREADS.value, "delegates": delegates}
        calls.append(tflite.prepare(model, content, arrays, **options)[0].invoke)
    return measure.rounds(calls, _ROUNDS.value)


if __name__ == "__main__":
    app.run(main)
