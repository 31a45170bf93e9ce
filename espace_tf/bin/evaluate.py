"""Judges networks on a dataset: loss, accuracy, and how often a compressed one answers alike.

    python -m espace_tf.bin.evaluate --model=out/tune/model.keras \\
        --original=out/train/model.keras --dataset=fashion_mnist --test_split=test \\
        --output_dir=out/evaluate

--model may be a .tflite file, too, of a network whose --original is a Keras file. Into --output_dir
go evaluate.json with the numbers of the table that is printed, evaluate.flags for --flagfile, and
events for TensorBoard. What was judged before a kill is not judged again: the same command goes on,
2,048 images at a time.
"""

from typing import Any

from espace_tf.bin import shared_flags
from espace_tf.bin.frame import tables
from espace_tf.bin.frame.command import Command, start
from espace_tf.bin.frame.run import Run

# Images that are judged between two notes of how far it is.
_PART = 2048


def run() -> None:
    """The command `espace-evaluate`."""
    start(COMMAND)


def _check() -> None:
    if shared_flags.MODEL.value.endswith(".tflite") and shared_flags.ORIGINAL.value is None:
        raise ValueError("--original must name the Keras network that a .tflite file is of")


def _work(run: Run) -> dict[str, Any]:
    from espace_tf.bin import opening
    from espace_tf.bin.work import judging

    source = opening.source()
    original = opening.model(shared_flags.ORIGINAL)
    path = shared_flags.MODEL.value
    model = None if path.endswith(".tflite") else opening.model(shared_flags.MODEL)
    network = model if original is None else original
    examples = opening.examples(source, network)
    split = opening.test_split(source)
    if split is None:
        raise ValueError(
            "--test_split must be given for a dataset without a validation or test split. Received "
            f"one with {', '.join(source.sizes)}"
        )
    data = opening.described(source, examples, split)
    run.begin(
        [
            ("networks", ", ".join(each for each in (shared_flags.ORIGINAL.value, path) if each)),
            ("data", data),
            ("results", str(run.result)),
        ]
    )
    calls = {} if original is None else {"original": original}
    calls["model"] = judging.from_file(path, network) if model is None else model
    judge = judging.Judging(network, examples.held_out(split), calls)
    parts = range(0, source.count(split), _PART)
    sums = [
        run.step(f"part{start}", lambda start=start: judge.part(start, _PART)) for start in parts
    ]
    return {"data": data, "models": judging.means(sums)}


COMMAND = Command(
    name="evaluate",
    description=__doc__,
    flags=("model", "original", *shared_flags.DATA, "train_batch_size", *shared_flags.COMMON),
    needs=("model", "dataset", "output_dir"),
    reads=lambda path: not path.endswith(".tflite"),
    check=_check,
    work=_work,
    table=tables.evaluation_table,
)

if __name__ == "__main__":
    run()
