"""Predictors of what training leaves, and how well they order plans."""

import dataclasses

import numpy as np
import pytest

from benchmarks import predictors
from benchmarks.predictors import Parts
from espace_tf.planning.contenders import damage_parts
from espace_tf.planning.planner import plan
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.option import Option
from espace_tf.records.site import Site

SEED = 11
OPTIONS = (
    Option(ms=1.0),
    Option(ms=0.5, rank=2, damage=0.2, error=0.3),
    Option(ms=0.55, rank=2, order="horizontal", damage=0.3, error=0.4),
    Option(ms=0.5, family="grid", keep=0.5, damage=0.1),
    Option(ms=0.3, rank=2, family="grid", keep=0.5, damage=0.25, error=0.3),
)
SITE = Site(
    path="conv",
    kind="conv",
    kernel_size=(3, 3),
    in_channels=4,
    filters=8,
    input_sizes=((12, 12),),
    output_sizes=((12, 12),),
    padding="same",
)


def analysis() -> Analysis:
    random, sites = np.random.default_rng(SEED), {}
    for path in ("one", "two"):
        kernel = random.normal(size=(3, 3, 4, 8)).astype(np.float32)
        site = dataclasses.replace(SITE, path=path)
        sites[path] = SiteAnalysis(site=site, kernel=kernel, dense_ms=1.0, options=OPTIONS)
    config = sites["one"].config
    return Analysis(fingerprint="", config=config, sites=sites, model_ms=2.0)


def test_a_mask_damages_what_it_adds_to_its_rank():
    parts = damage_parts(OPTIONS)
    assert np.allclose(parts, [(0, 0), (0.2, 0), (0.3, 0), (0, 0.1), (0.2, 0.05)])
    assert np.allclose(np.sum(parts, 1), [each.damage for each in OPTIONS])


def test_the_parts_of_a_plan_add_up_to_what_it_was_made_of():
    given = analysis()
    found = predictors.parts_of(given, plan(given, speedup=3.2))
    assert found.by_rank == (0.2, 0.2) and found.by_mask == pytest.approx((0.05, 0.05))
    assert found.error == (0.3, 0.3)
    assert found.total(1, 1) == pytest.approx(0.5)
    assert found.total(3, 0.5) == pytest.approx(2 * 0.2**0.5 + 6 * 0.05**0.5)


def test_a_plan_of_another_analysis_is_refused():
    given = analysis()
    made = plan(given, speedup=3.2)
    other = dataclasses.replace(
        given,
        sites={
            path: dataclasses.replace(site, options=OPTIONS[:3])
            for path, site in given.sites.items()
        },
    )
    with pytest.raises(ValueError, match="no option like this one of 'one'"):
        predictors.parts_of(other, made)


def test_perturbed_analyses_change_each_part_by_one_factor_a_layer():
    given, random = analysis(), np.random.default_rng(SEED)
    made = predictors.perturbed(given, random, 1.0)
    factors = []
    for site in made.sites.values():
        before, after = (np.asarray(damage_parts(each)) for each in (OPTIONS, site.options))
        ranks = after[[1, 2, 4], 0] / before[[1, 2, 4], 0]
        masks = after[[3, 4], 1] / before[[3, 4], 1]
        assert np.ptp(ranks) < 1e-9 and np.ptp(masks) < 1e-9, f"seed {SEED}"
        factors.append((ranks[0], masks[0]))
    assert len(set(np.ravel(factors))) == 4


def test_correlation_is_that_of_ranks_within_a_speed():
    random = np.random.default_rng(SEED)
    groups = np.repeat([2, 4, 8], 9)
    x, y = random.normal(size=(2, 27))
    wanted = []
    for group in (2, 4, 8):
        ranks = [np.argsort(np.argsort(values[groups == group])) for values in (x, y)]
        wanted.append(np.corrcoef(*ranks)[0, 1])
    # What differs between speeds does not count, nor any monotone scale.
    found = predictors.rank_correlation(np.exp(x + 100 * (groups == 4)), y - 50 * groups, groups)
    assert found == pytest.approx(np.mean(wanted)), f"seed {SEED}"
    assert predictors.rank_correlation([1, 1, 1], [1, 2, 3], [2, 2, 2]) == 0
    assert predictors.rank_correlation([1, 2, float("nan")], [1, 2, 3], [2, 2, 2]) == 1


def test_the_factor_and_power_that_decide_are_found():
    random = np.random.default_rng(SEED)
    draws = np.exp(random.normal(size=(40, 2, 3)))
    parts = [Parts(tuple(rank), tuple(mask), (0.0,) * 3) for rank, mask in draws]
    after = [each.total(10.0, 0.5) for each in parts]
    unseen, best = predictors.learned(parts, after, [2, 4, 6, 8] * 10)
    assert best == (10.0, 0.5) and unseen == pytest.approx(1), f"seed {SEED}"
    noise = list(random.normal(size=40))
    unseen, _ = predictors.learned(parts, noise, [2, 4, 6, 8] * 10)
    assert unseen < 0.5, f"seed {SEED}"
