"""Plans that race: what each analysis offers, and at what damage."""

import math

import numpy as np
import pytest

from espace_tf.planning.contenders import contenders, option_of, rivals, with_damages
from espace_tf.planning.planner import plan
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.option import Option
from espace_tf.records.site import Site

OPTIONS = (
    Option(ms=1.0),
    Option(ms=0.5, rank=2, damage=0.2),
    Option(ms=0.55, rank=2, order="horizontal", damage=0.3),
    Option(ms=0.5, family="grid", keep=0.5, damage=0.1),
    Option(ms=0.3, rank=2, family="grid", keep=0.5, damage=0.25),
)


def analysis(options=OPTIONS) -> Analysis:
    site = Site(
        path="conv",
        kind="conv",
        kernel_size=(3, 3),
        in_channels=4,
        filters=8,
        input_sizes=((12, 12),),
        output_sizes=((12, 12),),
        padding="same",
    )
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    known = SiteAnalysis(site=site, kernel=kernel, dense_ms=1.0, options=options)
    return Analysis(fingerprint="", config=known.config, sites={"conv": known}, model_ms=1.0)


def damages(found: Analysis) -> dict:
    return {(o.rank, o.order, o.family): o.damage for o in found.sites["conv"].options}


def test_each_differs_from_the_plan_in_one_thing():
    given = analysis()
    first = plan(given, speedup=1.9)
    assert first.layers["conv"].family == "grid" and first.layers["conv"].rank is None
    made = contenders(given, plan(given, speedup=3.0), 4)
    assert list(made) == ["as planned", "ranks only", "masks count 3 times", "other orders"]
    assert made["as planned"].sites["conv"].options == OPTIONS
    assert damages(made["ranks only"]) == damages(analysis(OPTIONS[:3]))
    weighted = damages(made["masks count 3 times"])
    assert weighted[None, "vertical", "grid"] == pytest.approx(0.3)
    assert weighted[2, "vertical", "grid"] == pytest.approx(0.2 + 3 * 0.05)
    assert weighted[2, "horizontal", None] == 0.3
    assert damages(made["other orders"]) == damages(analysis((OPTIONS[0], *OPTIONS[2:4])))
    assert list(contenders(given, first, 2)) == ["as planned", "ranks only"]
    assert given.sites["conv"].options == OPTIONS


def test_layers_of_one_order_keep_it():
    given = analysis((OPTIONS[0], OPTIONS[1]))
    made = contenders(given, plan(given, speedup=1.9), 4)
    assert made["other orders"].sites["conv"].options == given.sites["conv"].options
    assert all(math.isfinite(damage) for damage in damages(made["masks count 3 times"]).values())


def test_rivals_count_the_roots_of_damages_and_masks_once_or_thrice():
    given = analysis()
    for found, weight in zip(rivals(given), (1, 3), strict=True):
        rooted = damages(found)
        assert rooted[2, "vertical", None] == pytest.approx(math.sqrt(0.2))
        both = math.sqrt(0.2) + weight * math.sqrt(0.05)
        assert rooted[2, "vertical", "grid"] == pytest.approx(both)
        assert rooted[None, "vertical", None] == 0
        made = plan(found, speedup=3.0, damage_scale=1e-6)
        assert with_damages(made, given).layers["conv"].damage == 0.25
    assert damages(given) == damages(analysis())


def test_an_option_that_an_analysis_lacks():
    given = analysis()
    layer = plan(given, speedup=3.0).layers["conv"]
    assert option_of(given, "conv", layer) == OPTIONS[4]
    with pytest.raises(ValueError, match="no option like this one of 'conv'"):
        option_of(analysis(OPTIONS[:3]), "conv", layer)
