"""Budgets, and the search for the fastest network within one."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from espace_tf.config import EspaceWarning
from espace_tf.planning import search
from espace_tf.planning.budget import Budget
from espace_tf.planning.planner import DEAREST
from espace_tf.planning.search import Search
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.comparison import Comparison
from espace_tf.records.option import Option
from espace_tf.records.site import Site
from espace_tf.timing.measure import Ratio

CLOCK = SimpleNamespace(error=None)  # in the place of a reference: times are made up


def compared(loss: float, drop: float | None = None) -> Comparison:
    known = {} if drop is None else {"accuracy_before": 0.9, "accuracy_after": 0.9 - drop}
    return Comparison(images=10**6, loss_increase=loss, agreement=1.0, **known)


def test_what_is_spent():
    assert Budget(loss=0.02).spent(compared(0.03)) == pytest.approx(1.5)
    assert Budget(accuracy=0.01).spent(compared(9.0, 0.005)) == pytest.approx(0.5)
    assert Budget(loss=0.1, accuracy=0.01).spent(compared(0.03, 0.02)) == pytest.approx(2.0)
    half = dataclasses.replace(compared(9.0), agreement=0.95)
    assert Budget(agreement=0.9).spent(half) == pytest.approx(0.5)
    assert str(Budget(loss=0.02, agreement=0.9)) == "max_loss_increase=0.02, min_agreement=0.9"


def analysis(rng: np.random.Generator) -> Analysis:
    """Layers whose damage grows as their time falls."""
    sites = {}
    for index in range(6):
        place = Site(
            path=f"conv{index}", kind="conv", kernel_size=(3, 3), in_channels=8, filters=8,
            padding="same", input_sizes=((8, 8),), output_sizes=((8, 8),),
        )  # fmt: skip
        options = [Option(ms=1.0, macs=100)]
        for rank in range(1, 20):
            ms, scale = rank / 24 + 0.05, rng.uniform(0.001, 0.01)
            damage = scale * (1 / ms - 1) ** 1.5
            options.append(Option(rank=rank, ms=ms, damage=damage, macs=5 * rank))
        sites[place.path] = SiteAnalysis(
            site=place, kernel=np.zeros((3, 3, 8, 8), "float32"), dense_ms=1.0,
            options=tuple(options),
        )  # fmt: skip
    return Analysis(
        fingerprint="f", config=SiteAnalysis(site=place, kernel=0).config, sites=sites,
        model_ms=7.0, target="labels",
    )  # fmt: skip


class Truth:
    """What networks lose really: a factor and a power of what is predicted; e^-loss agree."""

    def __init__(self, rng: np.random.Generator):
        self.factor, self.power, self.asked = rng.uniform(0.2, 5), rng.uniform(0.7, 1.4), 0

    def compare(self, model) -> Comparison:
        self.asked += 1
        predicted = sum(layer.damage for layer in model.espace_plan.layers.values())
        loss = self.factor * predicted**self.power
        return dataclasses.replace(compared(loss), agreement=math.exp(-loss))


@pytest.mark.parametrize("seed", range(20))
def test_the_fastest_network_within_a_loss_is_found(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    known, truth, allowed = analysis(rng), Truth(rng), float(rng.uniform(0.02, 0.5))
    monkeypatch.setattr(search, "applied", lambda _, made: SimpleNamespace(espace_plan=made))
    monkeypatch.setattr(search, "_measured_speedup", lambda _, small, *__: 2.0)
    monkeypatch.setattr(SiteAnalysis, "factors", lambda *_: None)
    made = Search(None, known, CLOCK, truth).within(Budget(loss=allowed)).espace_plan
    assert made.comparison.loss_increase <= allowed, f"{seed=}"
    # Close to what can be had: the plan whose true loss is the whole budget.
    best = search.plan(
        known, max_loss_increase=(allowed / truth.factor) ** (1 / truth.power)
    ).predicted_ms
    assert made.predicted_ms <= 1.05 * best, f"{seed=}"
    assert truth.asked <= 6
    least = float(rng.uniform(0.8, 0.98))
    made = Search(None, known, CLOCK, truth).within(Budget(agreement=least)).espace_plan
    assert made.comparison.agreement >= least, f"{seed=}"
    best = search.plan(
        known, max_loss_increase=(-math.log(least) / truth.factor) ** (1 / truth.power)
    )
    assert made.predicted_ms <= 1.06 * best.predicted_ms, f"{seed=}"


def test_a_plan_that_uses_little_of_its_budget_and_loses_too_much_is_followed_by_others(
    monkeypatch,
):
    """All layers at their least rank are predicted to lose next to nothing, and lose a lot."""
    known = analysis(np.random.default_rng(3))
    for site in known.sites.values():
        options = [dataclasses.replace(each, damage=1e-4 * each.damage) for each in site.options]
        site.options = tuple(options)

    def compare(model):
        loss = 1e4 * sum(layer.damage for layer in model.espace_plan.layers.values())
        return dataclasses.replace(compared(loss), agreement=math.exp(-loss))

    monkeypatch.setattr(search, "applied", lambda _, made: SimpleNamespace(espace_plan=made))
    monkeypatch.setattr(search, "_measured_speedup", lambda _, small, *__: 2.0)
    monkeypatch.setattr(SiteAnalysis, "factors", lambda *_: None)
    truth = SimpleNamespace(compare=compare)
    made = Search(None, known, CLOCK, truth).within(Budget(agreement=0.95)).espace_plan
    assert made.layers and made.comparison.agreement >= 0.95


def test_answers_that_cost_more_than_predicted_buy_less_speed(monkeypatch):
    rng = np.random.default_rng(1)
    known = analysis(rng)
    truth = SimpleNamespace(
        compare=lambda model: compared(
            40 * sum(layer.damage for layer in model.espace_plan.layers.values())
        )
    )
    monkeypatch.setattr(search, "applied", lambda _, made: SimpleNamespace(espace_plan=made))
    monkeypatch.setattr(
        search, "_measured_speedup", lambda _, small, *__: small.espace_plan.predicted_speedup
    )
    monkeypatch.setattr(SiteAnalysis, "factors", lambda *_: None)
    naive = Search(None, known, CLOCK).at_speed(4.0).espace_plan
    assert naive.measured_speedup == pytest.approx(4.0, rel=0.1)
    made = Search(None, known, CLOCK, truth).at_speed(4.0).espace_plan
    assert made.measured_speedup < 3.5
    paid = made.comparison.loss_increase / math.log(made.measured_speedup)
    assert paid <= DEAREST * 1.05


def test_what_a_refit_brings_back_buys_the_speed_that_was_too_dear(monkeypatch):
    rng = np.random.default_rng(1)
    known, refitted = analysis(rng), []
    for site in known.sites.values():
        options = [dataclasses.replace(each, damage=40 * each.damage) for each in site.options]
        site.options = tuple(options)

    def compare(model):
        share = 0.02 if any(model is each for each in refitted) else 1.0
        layers = model.espace_plan.layers.values()
        return compared(share * sum(layer.damage for layer in layers))

    monkeypatch.setattr(search, "applied", lambda _, made: SimpleNamespace(espace_plan=made))
    monkeypatch.setattr(
        search, "_measured_speedup", lambda _, small, *__: small.espace_plan.predicted_speedup
    )
    monkeypatch.setattr(SiteAnalysis, "factors", lambda *_: None)
    truth = SimpleNamespace(compare=compare)
    without = Search(None, known, CLOCK, truth).at_speed(4.0).espace_plan
    assert without.measured_speedup < 3.3
    made = Search(None, known, CLOCK, truth, refit=refitted.append).at_speed(4.0).espace_plan
    assert made.measured_speedup == pytest.approx(4.0, rel=0.1)
    assert made.comparison.loss_increase <= DEAREST * math.log(4.0)


def test_a_machine_that_is_too_busy_to_measure_is_told(monkeypatch):
    found = Ratio(2.0, 0.2)
    reference = SimpleNamespace(speedup=lambda small, **_: found)
    assert search._measured_speedup(reference, None, *search._QUICK) == 2.0
    with pytest.warns(EspaceWarning, match="machine is busy: .* 2.00 times .* error of 20%"):
        search._measured_speedup(reference, None, *search._FINAL)
    found = Ratio(2.0, 0.02)
    assert search._measured_speedup(reference, None, *search._FINAL) == 2.0
