"""Search: what a measurement tells of a prediction, on clocks that are made up."""

import dataclasses

import keras
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.network.network import Network
from espace_tf.planning import search
from espace_tf.planning.search import Search
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.comparison import Comparison
from espace_tf.records.option import Option

LAYERS, DENSE, CHANGED, OTHER = 6, 1.0, 0.005, 1.0  # milliseconds in fused graphs
MODEL = 10.0  # in TensorFlow


def network() -> Network:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 8))
    for index in range(LAYERS):
        x = keras.layers.Conv2D(8, 3, padding="same", name=f"conv{index}")(x)
    return Network.read(keras.Model(inputs, x))


def analysis(read: Network, fused: bool) -> Analysis:
    sites = {}
    for number, site in enumerate(read.sites):
        pair = {"rank": 1, "order": "vertical", "damage": 1e-4 * (1 + number)}
        options = (
            Option(ms=DENSE, macs=site.macs()),
            Option(ms=CHANGED, macs=site.macs(1), **pair),
        )
        kernel, bias = read.layers[site.path].get_weights()
        sites[site.path] = SiteAnalysis(
            site=site,
            kernel=kernel,
            bias=bias,
            dense_ms=DENSE,
            options=options,
            config=EspaceConfig(),
        )
    times = {"model_ms": MODEL}
    if fused:
        times |= {"fused_ms": LAYERS * DENSE + OTHER, "other_ms": OTHER}
    return Analysis(fingerprint=read.fingerprint, config=EspaceConfig(), sites=sites, **times)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("extra", [-0.5, 0.0, 1.2])
def test_time_that_no_changed_layer_explains_is_spent_elsewhere(monkeypatch, fused, extra):
    read, least = network(), 1.0 if fused else MODEL - LAYERS * DENSE

    def measured(reference, small, *_):
        changed = len(small.espace_plan.layers)
        spent = least + extra + CHANGED * changed + DENSE * (LAYERS - changed)
        return MODEL / spent

    monkeypatch.setattr(search, "_measured_speedup", measured)
    found = Search(read, analysis(read, fused), reference=None)
    asked = MODEL / (least + extra + CHANGED * 4 + DENSE * 2)  # what four changed layers reach
    monkeypatch.setattr(Search, "_finished", lambda self, tried: tried)
    tried = found.at_speed(asked)
    assert len(tried.plan.layers) == 4
    assert tried.speed == pytest.approx(asked, rel=1e-6)


class Told:
    """Images held out on which a network loses what it is told to, by the layers it changes."""

    def __init__(self, losses: dict[int, float], agreement: dict[int, float]):
        self.losses, self.agreement, self.compared = losses, agreement, []

    def compare(self, small) -> Comparison:
        self.compared.append(set(small.espace_plan.layers))
        count = len(small.espace_plan.layers)
        agreement = self.agreement.get(count, 0.9)
        return Comparison(images=9, loss_increase=self.losses[count], agreement=agreement)


def one_or_three(read: Network) -> Analysis:
    """The first layer saves as much time as three others do, and loses more than they in sum."""
    given = analysis(read, fused=True)
    for number, site in enumerate(given.sites.values()):
        dense, pair = site.options
        ms, damage = (0.1, 0.1) if number == 0 else (0.7, 0.02)
        site.options = (dense, dataclasses.replace(pair, ms=ms, damage=damage))
    return given


@pytest.mark.parametrize(
    ("losses", "agreement", "slower", "taken", "compared"),
    [
        ({3: 0.2, 1: 0.15}, {}, 1.0, 1, [3, 1]),  # it answers better once it is refitted
        ({3: 0.2, 1: 0.25}, {}, 1.0, 3, [3, 1]),
        ({3: 0.2, 1: 0.19}, {}, 1.0, 3, [3, 1]),  # on so few images that is the same
        ({3: 0.2, 1: 0.15}, {1: 0.8}, 1.0, 3, [3, 1]),  # surer, but of other answers
        ({3: 0.2, 1: 0.15}, {}, 1.2, 3, [3, 1]),  # better, but slower than it was predicted to be
        ({3: 0.05, 1: 0.0}, {}, 1.0, 3, [3]),  # where little is lost nothing is looked for
    ],
)
def test_a_plan_that_loses_much_has_rivals(monkeypatch, losses, agreement, slower, taken, compared):
    read = network()
    given, held_out, refitted = one_or_three(read), Told(losses, agreement), []

    def measured(reference, small, *_):
        layers = small.espace_plan.layers
        return small.espace_plan.predicted_speedup / (slower if len(layers) == 1 else 1.0)

    monkeypatch.setattr(search, "_measured_speedup", measured)
    monkeypatch.setattr(Search, "_finished", lambda self, tried: tried)
    asked = MODEL / (LAYERS * DENSE + OTHER - 0.9)
    options = {"held_out": held_out, "refit": refitted.append}
    tried = Search(read, given, reference=None, **options).at_speed(asked)
    assert (
        [len(each) for each in held_out.compared]
        == compared
        == [len(each.espace_plan.layers) for each in refitted]
    )
    made = tried.plan
    assert len(made.layers) == taken and made.speedup == asked
    assert made.comparison.loss_increase == losses[taken]
    assert {each.damage for each in made.layers.values()} == {0.1 if taken == 1 else 0.02}
