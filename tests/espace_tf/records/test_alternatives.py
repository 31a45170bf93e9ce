"""The next options of a layer: on a plan's own milliseconds, by what a millisecond costs."""

import pytest

from espace_tf.config import EspaceConfig
from espace_tf.records.alternatives import Alternative, Alternatives, alternatives
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan
from espace_tf.records.site import Site

OPTIONS = (
    Option(ms=10.0),
    Option(rank=8, ms=6.0, damage=0.1),
    Option(rank=6, ms=4.0, damage=0.3),
    Option(rank=4, ms=3.5, damage=0.7),  # one millisecond for .8
    Option(rank=2, ms=2.0, damage=0.9),  # one for .3
    Option(rank=6, family="rows", keep=0.5, ms=3.0, damage=2.0),
    Option(rank=6, order="horizontal", ms=4.5, damage=0.35),
)


def analysis(options=OPTIONS) -> Analysis:
    size = {"input_sizes": ((8, 8),), "output_sizes": ((8, 8),)}
    site = Site(path="conv", kind="conv", kernel_size=(3, 3), in_channels=8, filters=8, **size)
    known = SiteAnalysis(site=site, kernel=None, dense_ms=10.0, options=tuple(options))
    return Analysis(fingerprint="", config=EspaceConfig(), sites={"conv": known})


def test_neighbours_on_the_plans_milliseconds():
    made = Plan(layers={"conv": LayerPlan(rank=6)}, times={"conv": (20.0, 8.0)})
    found = alternatives(made, analysis())["conv"]
    # The plan counts two for each of the analysis: 4 ms are 8 there.
    assert found.faster.option.rank == 2
    assert (found.faster.ms, found.faster.damage) == pytest.approx((-4.0, 0.6))
    assert found.gentler.option.rank == 8
    assert (found.gentler.ms, found.gentler.damage) == pytest.approx((4.0, -0.2))


def test_of_a_layer_that_stays_as_it_is():
    found = alternatives(Plan(times={"conv": (10.0, 10.0)}), analysis())["conv"]
    assert found.gentler is None
    assert found.faster.option.rank == 8
    assert (found.faster.ms, found.faster.damage) == pytest.approx((-4.0, 0.1))


def test_of_the_fastest_option_of_an_edited_plan_and_of_none():
    made = Plan(layers={"conv": LayerPlan(rank=2)}, times={"conv": (10.0, 2.0)})
    assert alternatives(made, analysis())["conv"].faster is None
    made = Plan(layers={"conv": LayerPlan(rank=5)}, times={"conv": (10.0, 2.0)})
    assert alternatives(made, analysis())["conv"] == Alternatives()
    assert alternatives(Plan(), analysis()) == {}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (Option(ms=1.0), "as it is"),
        (Option(rank=4, ms=1.0), "rank 4"),
        (Option(family="grid", keep=0.25, ms=1.0), "grid 25%"),
    ],
)
def test_words(option, words):
    assert Alternative(option=option, ms=0.0, damage=0.0).words == words
