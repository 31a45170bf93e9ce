"""Plans of one speed made in different ways."""

import dataclasses

import keras
import numpy as np
import pytest

import espace_tf
from benchmarks import combinations
from benchmarks.combinations import Combination, plan_at
from espace_tf.numerics.factors import plain_factors, reconstruct
from espace_tf.records.option import Option

SEED = 11


@pytest.fixture(scope="module")
def analysis(files):
    """Of the tiny network, with times that are its multiply-accumulates: no clock decides."""
    model = keras.models.load_model(files / "tiny.keras")
    with np.load(files / "data.npz") as data:
        x, y = data["x"][..., None] / np.float32(255), data["y"]
    config = espace_tf.EspaceConfig(calibration_images=64, damage_images=16)
    found = espace_tf.analyze(model, (x, y), config=config, verbose=0)
    for site in found.sites.values():
        site.options = tuple(
            dataclasses.replace(each, ms=each.macs * 1e-6, measured=True) for each in site.options
        )
        site.dense_ms = site.options[0].ms
    found.model_ms = sum(site.dense_ms for site in found.sites.values())
    found.fused_ms = found.other_ms = None
    return found


@pytest.mark.parametrize("combination", combinations.ALL, ids=lambda each: each.slug)
def test_every_plan_is_of_its_kind_and_reaches_its_speed(analysis, combination):
    made, reached = plan_at(analysis, combination, 1.6)
    assert reached and made.layers
    # Times are multiply-accumulates: what was predicted can be counted.
    total = sum(site.site.macs() for site in analysis.sites.values())
    after = total
    for path, layer in made.layers.items():
        site = analysis.sites[path]
        after += site.site.macs(layer.rank, layer.order, layer.positions) - site.site.macs()
    assert made.predicted_speedup == pytest.approx(total / after, rel=1e-6)
    assert 1.6 <= made.predicted_speedup < 2.2
    for path, layer in made.layers.items():
        site = analysis.sites[path]
        if combination.factors == "undecomposed":
            assert layer.rank is None
        if combination.masks == "unmasked":
            assert layer.positions is None
        if layer.rank is not None:
            assert combination.ranks == "planner" or layer.order == "vertical"
            pair = plain_factors(site.kernel, layer.rank, layer.order, site.site.groups)
            same = np.allclose(pair.first, layer.factors.first, atol=1e-5)
            assert same == (combination.factors == "plain")
        if combination.masks == "impact" and layer.positions is not None:
            lost = np.setdiff1d(np.arange(site.impact.size), layer.positions)
            impact = site.impact.ravel()
            assert impact[layer.positions].min() >= impact[lost].max()


def test_ranks_by_energy_keep_one_share_of_it(analysis):
    made, _ = plan_at(analysis, Combination("plain", "unmasked", "energy"), 1.6)
    shares = []
    for path, layer in made.layers.items():
        kernel = analysis.sites[path].kernel.astype(np.float64)
        matrix = kernel.transpose(0, 2, 1, 3).reshape(kernel.shape[0] * kernel.shape[2], -1)
        energy = np.cumsum(np.linalg.svd(matrix, compute_uv=False) ** 2)
        shares.append((energy[layer.rank - 1] / energy[-1], energy[layer.rank - 2] / energy[-1]))
    # One share lies at or below what every layer keeps and above what one rank less would keep.
    assert max(low for _, low in shares) < min(high for high, _ in shares)


def test_a_speed_out_of_reach_gives_the_fastest_plan(analysis):
    slow, reached = plan_at(analysis, Combination("aware", "unmasked", "uniform"), 1000.0)
    assert not reached
    assert all(layer.rank == 1 for layer in slow.layers.values())


def test_damage_of_plain_factors_is_that_of_their_responses(analysis):
    (path, site), *_ = [item for item in analysis.sites.items() if item[1].site.in_channels > 1]
    option = next(each for each in site.options if each.rank and not each.family)
    patches = np.random.default_rng(SEED).multivariate_normal(
        site.mean[0], site.covariance[0], 20_000, check_valid="ignore"
    )
    pairs = (
        plain_factors(site.kernel, option.rank, option.order, 1),
        site.factors(option.rank, option.order),
    )
    changes = [site.kernel - reconstruct(pair, option.order, 1) for pair in pairs]
    plain, aware = (patches @ change.reshape(patches.shape[1], -1) for change in changes)
    expected = np.square(plain).sum() / np.square(aware - aware.mean(axis=0)).sum()
    kind = Combination("plain", "unmasked", "planner")
    changed = {
        (each.rank, each.order): each.damage
        for each in combinations._options(site, kind)
        if isinstance(each, Option) and each.family is None
    }
    found = changed[option.rank, option.order] / option.damage
    assert found == pytest.approx(expected, rel=0.05), f"{path}, seed {SEED}"
