"""Which number of quality the command shows, and that it is the right one."""

import types

import keras
import numpy as np
import pytest
from rich.console import Console

from espace_tf.bin import outcome

SEED = 1


@pytest.mark.parametrize(
    ("activation", "loss", "words"),
    [
        ("softmax", "sparse_categorical_crossentropy", "accuracy on x_test"),
        ("sigmoid", "binary_crossentropy", "binary accuracy on x_test"),
        (None, "mse", "loss on x_test"),
    ],
)
def test_quality_is_named_for_what_it_is(activation, loss, words, capsys):
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation=activation)])
    random = np.random.default_rng(SEED)
    x = random.normal(size=(20, 6)).astype(np.float32)
    y = random.integers(0, 2, (20, 3)).astype(np.float32)
    y = y[:, 0].astype(int) if activation == "softmax" else y
    name = words.removesuffix(" on x_test").replace(" ", "_")
    model.compile(loss=loss, metrics=[] if name == "loss" else [name], run_eagerly=True)
    expected = model.evaluate(x, y, verbose=0, return_dict=True)[name]
    rows = [
        types.SimpleNamespace(name=name, milliseconds=1.0, macs=2, parameters=3)
        for name in ("before", "after")
    ]
    models = {"before": model, "after": model}
    sizes = outcome.sizes(rows, models, outcome.judge(model, (x, y)))
    assert sizes["after"][name] == pytest.approx(expected, rel=1e-5), f"seed {SEED}"
    assert sizes["after"]["accuracy"] is None or name == "accuracy"
    known = {"speedup": 2.0, "asked_speedup": 2.0, "runtime": "tf", "batch_size": 1, "exports": []}
    Console(width=100).print(outcome.table(known | sizes))
    printed = capsys.readouterr().out
    assert f" {words} " in printed and f"{expected:.4f}" in printed


def test_without_images_to_judge_by_nothing_is_said():
    assert outcome.judge(None, None) is None
