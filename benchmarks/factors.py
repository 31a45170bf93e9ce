"""How much better response-aware factors are than the plain SVD, on trained networks.

For every k x k convolution, at the ranks that cost 1/2, 1/3 and 1/4 of its multiply-adds: the
response error on held-out patches of the whitened SVD with exact refit, against the plain SVD's.
Then the network's top-1 with every such convolution replaced, before any fine-tuning, at equal
multiply-adds of these convolutions. Effective kernels are put into a copy of the network, so only
accuracy is measured here, not speed.

Run from the root of the repository:

    python -m benchmarks.factors --teachers_dir=FOLDER --models=resnet20_fashion

The trained networks are not shipped: FOLDER holds them, or --models names .keras files.

Cost on two CPU cores: ResNet-20 about 1 minute; GoogLeNet and AlexNet (224 x 224 inside) 3 to 9
minutes each with --calibration_images=96 --patches_per_dimension=3 --held_out_patches=1000
--test_images=200 --batch=16.

Expect, as the mean over layers and both orders of the quotient of the two errors:

    multiply-adds    ResNet-20       GoogLeNet       AlexNet (these two with few images)
    1/2              0.29 (0.36)     0.10 (0.12)     0.03 (0.04)
    1/3              0.33 (0.43)     0.12 (0.15)     0.04 (0.06)
    1/4              0.37 (0.48)     0.16 (0.19)     0.05 (0.06)

against the plain SVD as published and, in brackets, against it with the best possible bias; and for
ResNet-20 top-1 of 0.93, 0.92, 0.86 (loss-aware) at 2, 3, 4 times fewer multiply-adds (plain SVD
with ranks by energy: 0.79, 0.78, 0.60; untouched: 0.94).

The factorisations: `espace_tf.low_rank`; the plain one: Tai et al. 2016,
https://arxiv.org/abs/1511.06067; ranks by energy: LRDKT 2018.
"""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.patches import Choice, Layer, collect, layers_of
from espace_tf.bin.inputs import array_files
from espace_tf.files import atomic_write
from espace_tf.numerics.factors import ORDERS, energy_rank

FLAGS = flags.FLAGS
flags.DEFINE_string("teachers_dir", "teachers", "Folder of .keras files.")
flags.DEFINE_list(
    "models",
    ["resnet20_fashion", "googlenet_224_fashion", "alexnet_224_fashion"],
    "Names in teachers_dir, or paths of .keras files (flat models with class scores).",
)
flags.DEFINE_string("data_dir", "/usr/share/datasets/fashion-mnist", "Data, see espace_tf.bin.")
flags.DEFINE_integer("calibration_images", 512, "Training images for the patch statistics.")
flags.DEFINE_integer("test_images", 1000, "Held-out images for the accuracy.")
flags.DEFINE_integer("patches_per_dimension", 10, "Calibration patches per patch dimension.")
flags.DEFINE_integer("held_out_patches", 2000, "Held-out patches per layer.")
flags.DEFINE_integer("batch", 32, "Images per batch.")
flags.DEFINE_integer("seed", 0, "Seed of the sampled positions.")
flags.DEFINE_string("output", "out/factors.json", "JSON file to write.")

RATIOS = (2, 3, 4)
COLUMNS = (
    "plain SVD",
    "plain SVD, centred",
    "response-aware",
    "predicted",
    "to plain",
    "to centred",
)


def error_rows(layers: list[Layer]) -> list[dict]:
    """Per ratio: mean held-out errors and mean quotients over layers and orders.

    The plain pair has no bias correction, as published; "centred" is with the best one.
    """
    rows = []
    for ratio in RATIOS:
        cells = []
        for layer in layers:
            for order in ORDERS:
                if rank := layer.rank_at(order, ratio):
                    choice = (order, rank)
                    plain = layer.held_out_error("plain", choice)
                    centred = layer.held_out_error("plain", choice, centred=True)
                    aware = layer.held_out_error("aware", choice)
                    predicted = layer.decomposition("aware", order).errors[rank]
                    cells.append((plain, centred, aware, predicted, aware / plain, aware / centred))
        means = dict(zip(COLUMNS, np.mean(cells, axis=0).tolist(), strict=True))
        rows.append({"ratio": ratio, "cells": len(cells), **means})
    return rows


def uniform(layers: list[Layer], kind: str, ratio: float) -> list[Choice | None]:
    """The same share of multiply-adds everywhere; per layer the order with the smaller error."""
    choices = []
    for layer in layers:
        ranks = {order: layer.rank_at(order, ratio) for order in ORDERS}
        possible = [(order, rank) for order, rank in ranks.items() if rank]
        choices.append(
            min(
                possible,
                key=lambda choice: layer.decomposition(kind, choice[0]).errors[choice[1]],
                default=None,
            )
        )
    return choices


def by_energy(layers: list[Layer], ratio: float) -> list[Choice | None]:
    """Vertical first, ranks by one common energy, found by bisection."""

    def choices(energy: float) -> list[Choice | None]:
        ranks = [
            energy_rank(layer.decomposition("plain", "vertical").singular_values, energy)
            for layer in layers
        ]
        return [
            ("vertical", rank) if rank * layer.rank_macs("vertical") < layer.macs else None
            for layer, rank in zip(layers, ranks, strict=True)
        ]

    return _largest(layers, choices, 0.0, 1.0, ratio)


def by_error(layers: list[Layer], kind: str, ratio: float) -> list[Choice | None]:
    """Least sum of predicted errors at the asked multiply-adds, by one common price of these."""
    options = []
    for layer in layers:
        rows = [(0.0, float(layer.macs), None)]
        for order in ORDERS:
            errors = layer.decomposition(kind, order).errors
            ranks = range(1, min(layer.rank_at(order, 1.0), len(errors) - 1) + 1)
            rows += [(errors[k], k * layer.rank_macs(order), (order, k)) for k in ranks]
        options.append(rows)

    def choices(cheapness: float) -> list[Choice | None]:
        price = np.exp(-cheapness)
        return [min(rows, key=lambda row: row[0] + price * row[1])[2] for rows in options]

    return _largest(layers, choices, -5.0, 45.0, ratio)


def _largest(
    layers: list[Layer],
    choices: Callable[[float], list[Choice | None]],
    low: float,
    high: float,
    ratio: float,
) -> list[Choice | None]:
    """choices(t) for the largest t within the budget, the cost growing with t."""
    budget = sum(layer.macs for layer in layers) / ratio
    for _ in range(50):
        middle = (low + high) / 2
        if total_macs(layers, choices(middle)) <= budget:
            low = middle
        else:
            high = middle
    return choices(low)


def total_macs(layers: list[Layer], choices: list[Choice | None]) -> float:
    """Multiply-adds of these convolutions with these choices."""
    return sum(
        layer.macs if choice is None else choice[1] * layer.rank_macs(choice[0])
        for layer, choice in zip(layers, choices, strict=True)
    )


def with_biases(model: keras.Model) -> keras.Model:
    """A copy in which every convolution has a bias."""

    def copied(layer):
        config = layer.get_config()
        if type(layer) is keras.layers.Conv2D:
            config["use_bias"] = True
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=copied)
    for old, new in zip(model.layers, copy.layers, strict=True):
        weights = old.get_weights()
        if len(weights) < len(new.weights):
            weights.append(np.zeros(new.weights[-1].shape, np.float32))
        new.set_weights(weights)
    copy.compile(metrics=["sparse_categorical_accuracy"])
    return copy


def accuracy(
    copy: keras.Model,
    layers: list[Layer],
    kind: str,
    choices: list[Choice | None],
    data: array_files.Data,
) -> float:
    """Top-1 on the test images with these choices; the copy gets its own weights back."""
    before = {}
    for layer, choice in zip(layers, choices, strict=True):
        if choice is not None:
            target = copy.get_layer(layer.name)
            before[layer.name] = target.get_weights()
            kernel, bias = layer.approximation(kind, choice)
            own = before[layer.name][1]
            target.set_weights([kernel, own if bias is None else own + bias])
    x, y = (part[: FLAGS.test_images] for part in data.test)
    scores = copy.predict(x, batch_size=FLAGS.batch, verbose=0)
    for name, weights in before.items():
        copy.get_layer(name).set_weights(weights)
    return float((scores.argmax(axis=-1) == y).mean())


def accuracy_rows(model: keras.Model, layers: list[Layer], data: array_files.Data) -> list[dict]:
    """Per way of factorising and choosing ranks: top-1 at every ratio."""
    copy = with_biases(model)
    untouched = accuracy(copy, layers, "plain", [None] * len(layers), data)
    ways = {
        "plain SVD, ranks by energy": ("plain", by_energy),
        "plain SVD, uniform": ("plain", functools.partial(uniform, kind="plain")),
        "response-aware, uniform": ("aware", functools.partial(uniform, kind="aware")),
        "response-aware, ranks by error": ("aware", functools.partial(by_error, kind="aware")),
        "loss-aware, ranks by error": ("loss", functools.partial(by_error, kind="loss")),
    }
    rows = [{"way": "untouched", "top1": [untouched] * len(RATIOS), "macs_ratio": [1.0] * 3}]
    total = total_macs(layers, [None] * len(layers))
    for way, (kind, choose) in ways.items():
        picks = [choose(layers, ratio=ratio) for ratio in RATIOS]
        rows.append(
            {
                "way": way,
                "top1": [accuracy(copy, layers, kind, choices, data) for choices in picks],
                "macs_ratio": [total / total_macs(layers, choices) for choices in picks],
            }
        )
    return rows


def show(name: str, result: dict) -> None:
    """Prints both tables of one model."""
    console = Console(width=110)
    table = Table(title=f"{name}: held-out response error of {result['layers']} convolutions")
    for column in ("multiply-adds", *COLUMNS):
        table.add_column(column, justify="right")
    for row in result["errors"]:
        table.add_row(f"1/{row['ratio']}", *(f"{row[column]:.4f}" for column in COLUMNS))
    console.print(table)
    table = Table(title=f"{name}: top-1 before fine-tuning on {FLAGS.test_images} images")
    table.add_column("factors and ranks")
    for ratio in RATIOS:
        table.add_column(f"{ratio}x fewer multiply-adds", justify="right")
    for row in result["accuracy"]:
        cells = zip(row["top1"], row["macs_ratio"], strict=True)
        table.add_row(row["way"], *(f"{top1:.4f} ({ratio:.2f}x)" for top1, ratio in cells))
    console.print(table)
    console.print(f"{result['seconds']:.0f} seconds")


def main(_: list[str]) -> None:
    """Runs every model of --models and writes --output after each."""
    data = array_files.load(FLAGS.data_dir)
    output, results = Path(FLAGS.output), {}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in FLAGS.models:
        started = time.perf_counter()
        path = Path(name) if name.endswith(".keras") else Path(FLAGS.teachers_dir, f"{name}.keras")
        model = keras.models.load_model(path, compile=False)
        layers = layers_of(model)
        collect(
            model,
            layers,
            data,
            images=FLAGS.calibration_images,
            per_dimension=FLAGS.patches_per_dimension,
            held_out=FLAGS.held_out_patches,
            batch=FLAGS.batch,
            seed=FLAGS.seed,
        )
        results[name] = {
            "layers": len(layers),
            "errors": error_rows(layers),
            "accuracy": accuracy_rows(model, layers, data),
        }
        results[name]["seconds"] = time.perf_counter() - started
        show(name, results[name])
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    app.run(main)
