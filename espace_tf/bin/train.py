"""Trains a network on a dataset, from scratch or from a file.

    python -m espace_tf.bin.train --model=resnet20 --dataset=fashion_mnist --epochs=5 \\
        --output_dir=out/train

--model is a file, or the name of a network of espace_tf.zoo (alexnet, googlenet, squeezenet,
resnet20, resnet32, ...) or of keras.applications (MobileNetV2, ResNet50, ... in letters of any
case), which is made for the classes and images of the dataset, with a first layer that scales
8-bit images. Crops are of --image_size, or of what the network usually takes.

The loss is the cross-entropy of the classes. The default optimizer is Adam with a warm-up and a
cosine, at a learning rate that is found; --optimizer=sgd --learning_rate=0.1 --weight_decay=1e-4 is
the usual recipe of ImageNet. Into --output_dir go

    model.keras     the trained network, for --model of the other commands
    train.json      losses and metrics of every epoch, as in the table that is printed
    train.flags     all flags, for --flagfile
    events          for TensorBoard, one point an epoch

Killed at any moment, the same command goes on from the last checkpoint and ends with the same
network. A dataset of TensorFlow Datasets or of image files is streamed: it need not fit the memory.
"""

from typing import Any

import numpy as np
from absl import flags

from espace_tf.bin import shared_flags
from espace_tf.bin.frame import tables
from espace_tf.bin.frame.command import Command, start
from espace_tf.bin.frame.run import Run
from espace_tf.bin.inputs import models

_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Height and width that a network made by name takes.", 1
)
_USUAL_SIZE = 224


def run() -> None:
    """The command `espace-train`."""
    start(COMMAND)


def _check() -> None:
    shared_flags.check_training(needs_epochs=True)
    if models.is_file(shared_flags.MODEL.value) and _IMAGE_SIZE.value is not None:
        raise ValueError("--image_size is for a network made by name: that of a file has its size")


def _work(run: Run) -> dict[str, Any]:
    from espace_tf.bin import opening
    from espace_tf.bin.work import training

    strategy = training.strategy()
    source = opening.source()
    name = None if models.is_file(shared_flags.MODEL.value) else shared_flags.MODEL.value
    model = opening.model(shared_flags.MODEL) if name is None else _built(source, name)
    examples = opening.examples(source, model, name)
    test, epochs = opening.test_split(source), shared_flags.EPOCHS.value or 1
    split = shared_flags.TRAIN_SPLIT.value
    run.begin(
        [
            ("network", f"{model.name}, {model.count_params():,} parameters, {model.input_shape}"),
            ("data", opening.described(source, examples, split, test)),
            ("training", training.described(epochs, examples)),
            ("results", f"{run.output / 'model.keras'}, {run.result}"),
        ]
    )
    found = training.train(
        model,
        examples,
        test,
        epochs=epochs,
        keep_best=bool(shared_flags.KEEP_BEST.value),
        run=run,
        strategy=strategy,
    )
    run.save(model, "model.keras")
    data = opening.described(source, examples, split, test)
    return {"model": model.name, "parameters": model.count_params(), "data": data, **found}


def _built(source: Any, name: str) -> Any:
    """An untrained network for the dataset's images and classes."""
    from espace_tf.bin.inputs import networks, pixels

    if source.classes is None:
        raise ValueError(
            f"--dataset={source.name} must have labels that are classes, integers from 0 on, for "
            f"--model={name}. Received: {_labels(source)}"
        )
    wanted = pixels.chosen(shared_flags.PREPROCESSING.value, name=name)
    height, width, channels = (*source.shape, None)[:3]
    if wanted.crops or _IMAGE_SIZE.value is not None:
        if not wanted.crops:
            raise ValueError("--image_size needs crops of that size: --preprocessing=imagenet")
        height = width = _IMAGE_SIZE.value or _USUAL_SIZE
    if None in (height, width):
        raise ValueError(
            f"--dataset={source.name} has images of different sizes: --preprocessing=imagenet cuts "
            "and resizes them to --image_size"
        )
    shape = (height, width, channels or 3)
    bytes_ = source.encoded or _example_type(source) == "uint8"
    return networks.build(name, shape, source.classes, wanted.values if bytes_ else "none")


def _labels(source: Any) -> str:
    """The labels of a dataset in memory in words."""
    labels = None if source.arrays is None else source.arrays("train")[1]
    if labels is None:
        return "none"
    return f"{labels.dtype} of shape {labels.shape}, {np.sort(labels.ravel())[0]} among them"


def _example_type(source: Any) -> str:
    spec = source.examples(next(iter(source.sizes))).element_spec
    return (spec[0] if isinstance(spec, tuple) else spec).dtype.name


COMMAND = Command(
    name="train",
    description=__doc__,
    flags=(
        *("model", "image_size", *shared_flags.DATA, *shared_flags.STREAMS),
        *(*shared_flags.TRAINING, "strategy", *shared_flags.COMMON),
    ),
    needs=("model", "dataset", "output_dir"),
    reads=models.is_file,
    check=_check,
    work=_work,
    table=tables.training_table,
)

if __name__ == "__main__":
    run()
