"""Trains a compressed network, with the network that it was compressed from as teacher.

    python -m espace_tf.bin.fine_tune --model=out/compress/compressed.keras \\
        --original=out/train/model.keras --dataset=fashion_mnist --epochs=2 --output_dir=out/tune

brings back accuracy that compression lost: the network is trained on the labels, on the original's
answers and on its features (`espace_tf.fine_tune` says how). Without --original the labels alone
count, without labels the original alone. The weights that judge best on --test_split are kept,
those of the beginning included; without such a split some of the training data is set aside for
that. Into --output_dir go

    model.keras      the trained network
    fine_tune.json   losses and metrics of every epoch, as in the table that is printed
    fine_tune.flags  all flags, for --flagfile
    events           for TensorBoard, one point an epoch

Killed at any moment, the same command goes on from the last checkpoint and ends with the same
network.
"""

from typing import Any

from espace_tf.bin import shared_flags
from espace_tf.bin.frame import tables
from espace_tf.bin.frame.command import Command, start
from espace_tf.bin.frame.run import Run


def run() -> None:
    """The command `espace-fine_tune`."""
    start(COMMAND)


def _check() -> None:
    shared_flags.check_training(needs_epochs=True)


def _work(run: Run) -> dict[str, Any]:
    from espace_tf.bin import opening
    from espace_tf.bin.work import training

    strategy = training.strategy()
    source = opening.source()
    model, teacher = (opening.model(f) for f in (shared_flags.MODEL, shared_flags.ORIGINAL))
    examples = opening.examples(source, model)
    test, epochs = opening.test_split(source), shared_flags.EPOCHS.value or 1
    split = shared_flags.TRAIN_SPLIT.value
    data = opening.described(source, examples, split, test)
    run.begin(
        [
            ("network", f"{model.name}, {model.count_params():,} parameters"),
            ("teacher", "none" if teacher is None else teacher.name),
            ("data", data),
            ("training", training.described(epochs, examples)),
            ("results", f"{run.output / 'model.keras'}, {run.result}"),
        ]
    )
    best = shared_flags.KEEP_BEST.value
    found = training.train(
        model,
        examples,
        test,
        teacher=teacher,
        epochs=epochs,
        keep_best=best is None or best,
        run=run,
        strategy=strategy,
    )
    run.save(model, "model.keras")
    return {"model": model.name, "parameters": model.count_params(), "data": data, **found}


COMMAND = Command(
    name="fine_tune",
    description=__doc__,
    flags=(
        *("model", "original", *shared_flags.DATA, *shared_flags.STREAMS),
        *(*shared_flags.TRAINING, "strategy", *shared_flags.COMMON),
    ),
    needs=("model", "dataset", "output_dir"),
    check=_check,
    work=_work,
    table=tables.training_table,
)

if __name__ == "__main__":
    run()
