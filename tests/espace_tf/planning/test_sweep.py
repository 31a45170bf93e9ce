"""sweep: one analysis for all speeds, rows that say what the models do, and their curve."""

import dataclasses
import warnings
import xml.etree.ElementTree as ElementTree

import keras
import numpy as np
import pytest

from espace_tf.analysis import analyze as analyzing
from espace_tf.config import EspaceConfig
from espace_tf.planning import search
from espace_tf.planning import sweep as sweeping
from espace_tf.planning.planner import UnreachableSpeedWarning
from espace_tf.planning.sweep import SweepRow, sweep
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
from espace_tf.reports import curves

SEED = 11
CONFIG = EspaceConfig(calibration_images=24, damage_images=8, keeps=(0.5,), mask_families=("grid",))


def network(head="softmax") -> keras.Model:
    keras.utils.set_random_seed(SEED)
    layers = [keras.Input((12, 12, 3))]
    layers += [keras.layers.Conv2D(16, 3, padding="same", activation="relu", name=n) for n in "ab"]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4, activation=head)]
    return keras.Sequential(layers, name="net")


def samples(count=24, seed=SEED):
    rng = np.random.default_rng(seed)
    return rng.random((count, 12, 12, 3), np.float32), rng.integers(0, 4, count)


@pytest.fixture
def counted(monkeypatch):
    """How often the network was analysed; the speed measured is the speed predicted."""
    found, run = [], analyzing.run

    def analysed(*arguments):
        found.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(analyzing, "run", analysed)
    monkeypatch.setattr(
        search,
        "_measured_speedup",
        lambda _, small, *__: small.espace_plan.predicted_speedup,
    )
    return found


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreachableSpeedWarning)  # time is never asserted
        return sweep(*arguments, **options)


def test_every_speed_is_planned_from_one_analysis(counted):
    model, (images, classes) = network(), samples(70, seed=SEED + 1)
    rows = quietly(
        *(model, samples()),
        speedups=(1.1, 1.3),
        validation_data=(images, classes),
        config=CONFIG,
        verbose=0,
    )
    assert len(counted) == 1
    assert [row.asked for row in rows] == [1.0, 1.1, 1.3]
    assert rows[0].model is model and rows[0].measured == 1.0 and rows[0].damage == 0.0
    assert rows[1].model.espace_analysis is rows[2].model.espace_analysis
    for row in rows:
        scores = row.model.predict(images, verbose=0).astype(np.float64)
        likely = scores[np.arange(len(classes)), classes]
        assert row.loss == pytest.approx(-np.log(likely).mean(), rel=1e-4)
        assert row.accuracy == pytest.approx(np.mean(scores.argmax(-1) == classes))
    for row in rows[1:]:
        made = row.model.espace_plan
        assert made.speedup == row.asked and made.measured_speedup == row.measured
        assert row.damage == pytest.approx(sum(layer.damage for layer in made.layers.values()))


def test_a_regression_has_a_loss_and_no_accuracy(counted):
    model, images = network(head=None), samples()[0]
    targets = np.random.default_rng(SEED).random((24, 4), np.float32)
    rows = quietly(
        *(model, (images, targets)),
        speedups=[1.2],
        validation_data=(images, targets),
        loss="mse",
        config=CONFIG,
        verbose=0,
    )
    for row in rows:
        assert row.accuracy is None
        expected = np.mean((row.model.predict(images, verbose=0) - targets) ** 2)
        assert row.loss == pytest.approx(expected, rel=1e-4)


def test_without_validation_data_the_damage_is_known(counted, capsys):
    rows = quietly(network(), None, speedups=np.array([1.2]), config=CONFIG)
    assert [(row.accuracy, row.loss) for row in rows] == [(None, None)] * 2
    assert curves.measure(rows) == "damage"
    assert "Speeds" in capsys.readouterr().out


def refuse(*_, **__):
    raise AssertionError("work began before the arguments were checked")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speedups": 2.0}, "speedups must be a list"),
        ({"speedups": "23"}, "speedups must be a list"),
        ({"speedups": ()}, "speedups must be one or more"),
        ({"speedups": (2, 2.0)}, "speedups must be one or more different"),
        ({"speedups": (2, 1)}, "above 1"),
        ({"speedups": (2, float("nan"))}, "above 1"),
        ({"speedups": ["2"]}, "above 1"),
        ({"speedups": None}, "speedups must be a list"),
        ({"validation_data": samples()[0]}, "validation_data must have labels"),
        (
            {"validation_data": (samples()[0][:, 2:], samples()[1])},
            "validation_data must .*takes shape",
        ),
        ({"validation_data": (samples()[0], samples()[1] + 9)}, "validation_data's labels"),
        ({"config": {}}, "EspaceConfig"),
    ],
)
def test_arguments_are_refused_before_any_work(monkeypatch, arguments, message):
    monkeypatch.setattr(analyzing, "run", refuse)
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(network(), samples(), **{"speedups": (2, 3), **arguments})


def test_a_row_adds_the_damages_that_are_known():
    layers = {"a": LayerPlan(rank=2, damage=0.5), "b": LayerPlan(rank=2, damage=0.25)}
    for known, expected in ((layers, 0.75), ({"c": LayerPlan(rank=2)}, None), ({}, 0.0)):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.espace_plan = Plan(layers=known, speedup=2.0, measured_speedup=1.9)
        assert sweeping.row(model, accuracy=0.5).damage == expected
        assert sweeping.row(model).measured == 1.9
        assert sweeping.row(model, measured=2.1).measured == 2.1


ROWS = [
    SweepRow(asked=1.0, measured=1.0, damage=0.0, accuracy=0.9, loss=0.3, model="given"),
    SweepRow(asked=3.0, measured=2.9, damage=0.5, accuracy=0.8, loss=0.6, model="three"),
    SweepRow(asked=2.0, measured=2.1, damage=0.2, accuracy=0.85, loss=0.4, model="two"),
]


def test_the_curve_shows_the_first_thing_that_is_known_of_all_rows():
    assert curves.measure(ROWS) == "accuracy" and curves.measure([]) is None
    without = [dataclasses.replace(row, accuracy=None) for row in ROWS]
    assert curves.measure([*ROWS[:2], without[2]]) == "loss" == curves.measure(without)
    nothing = [dataclasses.replace(row, loss=None, damage=None) for row in without]
    assert curves.measure(nothing) is None
    with pytest.raises(ValueError, match="sweep must be rows that all have"):
        curves.speed_curve(nothing)


def test_the_curve_is_a_picture_with_a_dot_a_row():
    drawn = curves.speed_curve(ROWS, "two")
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg")
    comments = drawn.decode()
    for words in ("times faster, measured", "accuracy, %", "as given", "asked: 2", "asked: 3"):
        assert f"<!-- {words} -->" in comments, words
    assert drawn != curves.speed_curve(ROWS, "three")
