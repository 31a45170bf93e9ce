"""Writes a network for deployment: TensorFlow Lite files, or a SavedModel.

    python -m espace_tf.bin.export --model=out/tune/model.keras --formats=float32,int8 \\
        --dataset=fashion_mnist --output_dir=out/export

int8 takes the ranges of activations from --train_split of --dataset; the other formats use the data
to check what they wrote, if there is any. Every file is run and compared before it is there. Into
--output_dir go

    model.tflite            float32; model.float16.tflite, model.dynamic.tflite, model.int8.tflite
    saved_model             a folder, for TensorFlow Serving; model.onnx
    export.json             the numbers of the table that is printed
    export.flags            all flags, for --flagfile

Files that were written before a kill are not written again.
"""

from typing import Any

from espace_tf.bin import shared_flags
from espace_tf.bin.frame import formats, tables
from espace_tf.bin.frame.command import Command, start
from espace_tf.bin.frame.run import Run


def run() -> None:
    """The command `espace-export`."""
    start(COMMAND)


def _check() -> None:
    formats.check(shared_flags.FORMATS.value, shared_flags.DATASET.value)
    if not shared_flags.FORMATS.value:
        raise ValueError("--formats must name one or more of them. Received: none")


def _work(run: Run) -> dict[str, Any]:
    from espace_tf.bin import opening
    from espace_tf.bin.work import writing

    model, data, about = opening.model(shared_flags.MODEL), None, "none"
    if shared_flags.DATASET.value is not None:
        source, split = opening.source(), shared_flags.TRAIN_SPLIT.value
        examples = opening.examples(source, model)
        data, about = examples.held_out(split), opening.described(source, examples, split)
    names = list(dict.fromkeys(shared_flags.FORMATS.value))
    files = {name: run.output / formats.file_name(name) for name in names}
    rows = [("network", model.name), ("data", about)]
    run.begin([*rows, *((name, str(path)) for name, path in files.items())])
    written = [
        run.step(name, lambda name=name: writing.write(model, files[name], name, data))
        for name in names
    ]
    weights = sum(weight.nbytes for weight in model.get_weights())
    return {"model": model.name, "weight_bytes": weights, "files": written}


COMMAND = Command(
    name="export",
    description=__doc__,
    flags=("model", "formats", *shared_flags.DATA, "train_split", *shared_flags.COMMON),
    needs=("model", "output_dir"),
    check=_check,
    work=_work,
    table=tables.export_table,
)

if __name__ == "__main__":
    run()
