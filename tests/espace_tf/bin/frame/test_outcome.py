"""Which number of quality the command shows, and that it is the right one."""

import types

import keras
import numpy as np
import pytest
from rich.console import Console

from espace_tf.bin.frame import outcome, tables
from espace_tf.bin.work import judging

SEED = 1


@pytest.mark.parametrize(
    ("activation", "loss", "words"),
    [
        ("softmax", "sparse_categorical_crossentropy", "accuracy on held-out images"),
        ("sigmoid", "binary_crossentropy", "binary accuracy on held-out images"),
        (None, "mse", "loss on held-out images"),
    ],
)
def test_quality_is_named_for_what_it_is(activation, loss, words, capsys):
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation=activation)])
    random = np.random.default_rng(SEED)
    x = random.normal(size=(20, 6)).astype(np.float32)
    y = random.integers(0, 2, (20, 3)).astype(np.float32)
    y = y[:, 0].astype(int) if activation == "softmax" else y
    name = words.removesuffix(" on held-out images").replace(" ", "_")
    model.compile(loss=loss, metrics=[] if name == "loss" else [name], run_eagerly=True)
    expected = model.evaluate(x, y, verbose=0, return_dict=True)[name]
    rows = [
        types.SimpleNamespace(name=name, milliseconds=1.0, macs=2, parameters=3)
        for name in ("before", "after")
    ]
    models = {"before": model, "after": model}
    sizes = outcome.sizes(rows, models, judging.Judging(model, (x, y), models).all())
    assert sizes["after"][name] == pytest.approx(expected, rel=1e-5), f"seed {SEED}"
    assert sizes["after"]["accuracy"] is None or name == "accuracy"
    known = {"speedup": 2.0, "asked_speedup": 2.0, "runtime": "tf", "batch_size": 1, "exports": []}
    Console(width=120).print(tables.compress_table({"speeds": {"2x": known | sizes}}))
    printed = capsys.readouterr().out
    assert f" {words} " in printed and f"{expected:.4f}" in printed


@pytest.mark.parametrize("classes", [1, 3])
def test_models_are_compared_without_labels(classes):
    first, second = (np.random.default_rng(i).normal(size=(70, classes)) for i in range(2))
    weights = [[each, np.zeros(classes)] for each in (first, second)]
    calls = {}
    for name, each in zip(("a", "b"), weights, strict=True):
        calls[name] = keras.Sequential([keras.Input((70,)), keras.layers.Dense(classes)])
        calls[name].set_weights(each)
    found = judging.Judging(calls["a"], np.eye(70, dtype=np.float32), calls).all()
    assert found["a"] == {"images": 70}
    if classes == 3:
        same = np.mean(first.argmax(-1) == second.argmax(-1))
        assert found["b"] == {"images": 70, "agreement": pytest.approx(same)}
    else:
        assert found["b"]["cosine"] == pytest.approx(np.mean(np.sign(first * second)))


def test_parts_of_a_dataset_make_the_whole():
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="softmax")])
    random = np.random.default_rng(SEED)
    data = random.normal(size=(200, 6)).astype(np.float32), random.integers(0, 8, 200)
    whole = judging.Judging(model, data, {"model": model}).all()["model"]
    first = judging.Judging(model, data, {"model": model}).part(0, 64)
    rest = judging.Judging(model, data, {"model": model})  # after a kill
    sums = [first, *(rest.part(start, 64) for start in (64, 128, 192))]
    assert judging.means(sums)["model"] == pytest.approx(whole)
    scores = np.asarray(model(data[0]))
    ranks = (scores > scores[np.arange(200), data[1], None]).sum(1)
    assert whole["top5"] == np.mean(ranks < 5)
    assert whole["loss"] == pytest.approx(-np.log(scores[np.arange(200), data[1]]).mean(), rel=1e-5)
