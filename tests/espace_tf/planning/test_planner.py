"""The planner on synthetic analyses: the best combination, the budget, reasons, nested masks."""

import dataclasses
import itertools
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.numerics import masks
from espace_tf.numerics.factors import energy_rank, plain_factors
from espace_tf.planning import planner
from espace_tf.planning.planner import UnreachableSpeedWarning, plan
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan
from espace_tf.records.site import Site

KEEPS = (0.75, 0.5, 0.25)


def site(path: str, rng: np.random.Generator, config: EspaceConfig, side: int) -> SiteAnalysis:
    """A convolution with options whose times are random around what the operations suggest."""
    place = Site(
        path=path,
        kind="conv",
        kernel_size=(3, 3),
        in_channels=8,
        filters=8,
        padding="same",
        input_sizes=((side, side),),
        output_sizes=((side, side),),
    )
    dense_ms = float(rng.uniform(0.5, 2))
    impact = rng.exponential(size=(side, side))
    options = [Option(ms=dense_ms, measured=True, macs=place.macs())]
    choices = itertools.product((None, 2, 4, 8), (None, "impact", "rows"), KEEPS)
    for rank, family, keep in choices:
        if (family is None and keep != KEEPS[0]) or (rank is None and family is None):
            continue
        positions = family and masks.kept(family, (side, side), keep, impact=impact)
        macs = place.macs(rank, "vertical", positions if family else None)
        share = macs / place.macs()
        options.append(
            Option(
                rank=rank,
                family=family,
                keep=keep if family else 1.0,
                ms=dense_ms * share * float(rng.uniform(0.8, 1.3)) + 0.05,
                measured=True,
                damage=float(rng.exponential() * (1 - min(share, 1)) ** 2),
                macs=macs,
            )
        )
    return SiteAnalysis(
        site=place,
        kernel=rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
        * np.exp(-np.arange(8, dtype=np.float32)),
        bias=rng.normal(size=8).astype(np.float32),
        impact=impact.astype(np.float32),
        dense_ms=dense_ms,
        options=tuple(options),
        config=config,
    )


def analysis(seed: int, layers: int = 3, side: int = 16, **fields) -> Analysis:
    rng = np.random.default_rng(seed)
    config = EspaceConfig(**fields)
    sites = {f"conv{i}": site(f"conv{i}", rng, config, side) for i in range(layers)}
    total = sum(each.dense_ms for each in sites.values())
    return Analysis(
        fingerprint="f", config=config, sites=sites, skipped={"stem": "excluded"},
        model_ms=1.2 * total,
    )  # fmt: skip


def chosen(found: Plan, of: Analysis) -> dict[str, Option]:
    """The option behind every planned layer."""
    by_path = {}
    for path, layer in found.layers.items():
        (by_path[path],) = [
            option
            for option in of.sites[path].options
            if (option.rank, option.family) == (layer.rank, layer.family)
            and option.damage == layer.damage
        ]
    return by_path


@pytest.mark.parametrize("seed", range(12))
def test_default_profile_equals_trying_everything(seed):
    of = analysis(seed)
    rng = np.random.default_rng(seed)
    speedup = float(rng.uniform(1.1, 2.5))
    other = of.model_ms - sum(each.dense_ms for each in of.sites.values())
    least = math.inf
    offered = [
        [o for o in each.options if o.is_dense or o.ms < 0.95 * each.dense_ms]
        for each in of.sites.values()
    ]
    for picked in itertools.product(*offered):
        if other + sum(option.ms for option in picked) <= of.model_ms / speedup:
            least = min(least, sum(option.damage for option in picked))
    assert least < math.inf, f"seed {seed}"
    found = plan(of, speedup=speedup)
    damage = sum(layer.damage for layer in found.layers.values())
    assert damage == pytest.approx(least, rel=1e-6), f"seed {seed}"
    assert found.predicted_ms <= of.model_ms / speedup * (1 + 1e-9), f"seed {seed}"
    assert found.dense_ms == of.model_ms
    expected = other + sum(after for _, after in found.times.values())
    assert found.predicted_ms == pytest.approx(expected)


def test_a_plan_carries_factors_positions_and_reasons():
    of = analysis(1)
    found = plan(of, speedup=2.0)
    assert set(found.layers) | set(found.skipped) == {*of.sites, "stem"}
    assert found.skipped["stem"] == "excluded"
    assert (found.fingerprint, found.profile, found.speedup) == ("f", "default", 2.0)
    for path, option in chosen(found, of).items():
        layer = found.layers[path]
        if option.rank is not None:
            expected = of.sites[path].factors(option.rank, option.order)
            np.testing.assert_array_equal(layer.factors.first, expected.first)
        if option.family is not None:
            expected = of.sites[path].positions(option.family, option.keep)
            np.testing.assert_array_equal(layer.positions, expected)
            assert layer.output_size == (16, 16)


@pytest.mark.parametrize("speedup", [1.3, 1.6, 2.0])
def test_where_nothing_is_lost_layers_change_no_more_than_the_speed_needs(speedup):
    of = analysis(5, layers=8)
    for each in of.sites.values():
        harmless = tuple(dataclasses.replace(option, damage=0.0) for option in each.options)
        of.sites[each.site.path] = dataclasses.replace(each, options=harmless)
    assert speedup <= plan(of, speedup=speedup).predicted_speedup < 1.05 * speedup


def test_more_speed_costs_no_less():
    of = analysis(2, layers=5)
    plans = [plan(of, speedup=speedup) for speedup in (1.2, 1.5, 2.0, 2.5)]
    damages = [sum(layer.damage for layer in each.layers.values()) for each in plans]
    assert damages == sorted(damages)
    assert [each.predicted_ms for each in plans] == sorted(
        (each.predicted_ms for each in plans), reverse=True
    )


def test_a_layer_that_would_get_slower_is_left_with_its_reason():
    of = analysis(3)
    slow = of.sites["conv1"]
    slow.options = tuple(
        option if option.is_dense else Option(rank=2, ms=slow.dense_ms * 1.01, damage=-1.0)
        for option in slow.options
    )
    found = plan(of, speedup=1.3)
    assert "conv1" not in found.layers
    assert "would not get faster" in found.skipped["conv1"]
    assert found.times["conv1"] == (slow.dense_ms, slow.dense_ms)


def test_small_maps_are_not_masked():
    of = analysis(4, side=7)
    found = plan(of, speedup=1.5)
    assert found.layers
    for layer in found.layers.values():
        assert layer.positions is None
        assert "7 x 7" in layer.note


@pytest.mark.parametrize("profile", ["default", "faithful"])
def test_an_unreachable_speed_gives_the_fastest_plan_and_a_warning(profile):
    of = analysis(5, profile=profile)
    with pytest.warns(UnreachableSpeedWarning, match=r"speedup 50 was asked .* only \d\.\d\d"):
        found = plan(of, speedup=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert plan(of, speedup=100).predicted_ms == found.predicted_ms
    if profile == "default":
        fastest = sum(min(o.ms for o in each.options) for each in of.sites.values())
        total = sum(each.dense_ms for each in of.sites.values())
        assert found.predicted_ms == pytest.approx(of.model_ms - total + fastest)


def test_time_scale_corrects_the_options_not_the_layer_as_it_is():
    of = analysis(6)
    plain = plan(of, speedup=1.5)
    scaled = plan(of, speedup=1.5, time_scale=dict.fromkeys(of.sites, 1.5))
    assert scaled.dense_ms == plain.dense_ms
    option = chosen(scaled, of)
    for path, (before, after) in scaled.times.items():
        assert before == of.sites[path].dense_ms
        assert after == pytest.approx(1.5 * option[path].ms if path in option else before)
    assert scaled.predicted_ms <= of.model_ms / 1.5 * (1 + 1e-9)


def test_layers_that_take_longer_alone_are_scaled_to_the_whole():
    of = analysis(7)
    of.model_ms = 0.5 * sum(each.dense_ms for each in of.sites.values())
    found = plan(of, speedup=2.0)
    assert found.dense_ms == of.model_ms
    assert sum(before for before, _ in found.times.values()) == pytest.approx(of.model_ms)
    assert found.predicted_ms <= of.model_ms / 2 * (1 + 1e-9)


def in_fused_graphs(of: Analysis) -> Analysis:
    """The same where fused graphs alone make the model three times faster."""
    total = sum(each.dense_ms for each in of.sites.values())
    of.model_ms, of.fused_ms, of.other_ms = 3.6 * total, 1.2 * total, 0.2 * total
    return of


@pytest.mark.parametrize("seed", range(4))
def test_one_layer_is_compressed_where_fused_graphs_alone_would_do(seed):
    # Only a model with a compressed layer runs in them: it is the one that damages least.
    of = in_fused_graphs(analysis(seed))
    found = plan(of, speedup=2)
    (layer,) = found.layers.values()
    damages = [
        option.damage
        for each in of.sites.values()
        for option in each.options
        if not option.is_dense and option.ms < 0.95 * each.dense_ms
    ]
    assert layer.damage == min(damages), f"seed {seed}"
    assert 3 < found.predicted_speedup, f"seed {seed}"
    assert len(found.skipped) == len(of.sites) - 1 + 1, "all others, and the stem"
    of.fused_ms = of.other_ms = None
    of.model_ms = sum(each.dense_ms for each in of.sites.values())
    assert len(plan(of, speedup=2).layers) > 1, f"seed {seed}"


def test_where_no_option_is_faster_fused_graphs_compress_nothing():
    of = in_fused_graphs(analysis(0))
    for each in of.sites.values():
        each.options = tuple(option for option in each.options if option.is_dense)
    found = plan(of, speedup=2)
    assert not found.layers
    assert found.predicted_speedup == pytest.approx(3.0)


def test_more_layers_are_compressed_where_fused_graphs_do_not_suffice():
    of = in_fused_graphs(analysis(1))
    least = 3.6 / 5 - 0.2  # of the convolutions' time
    found = plan(of, speedup=5)
    assert len(found.layers) > 1
    total = sum(each.dense_ms for each in of.sites.values())
    assert sum(after for _, after in found.times.values()) <= least * total * (1 + 1e-9)


@pytest.mark.parametrize("value", [1, 0.5, 0, -1, float("nan"), float("inf"), "2", None, [2], True])
def test_speedups_that_make_no_sense_are_refused(value):
    with pytest.raises(ValueError, match="speedup"):
        plan(analysis(0), speedup=value)


def test_other_arguments_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match="analysis"):
        plan({"sites": []}, speedup=2)
    with pytest.raises(ValueError, match="time_scale"):
        plan(analysis(0), speedup=2, time_scale={"conv0": float("nan")})
    with pytest.raises(ValueError, match="time_scale must name layers .*conv0.* 'cnv0'"):
        plan(analysis(0), speedup=2, time_scale={"cnv0": 1.0})


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_a_second_stage_lie_inside_the_first(seed):
    first = analysis(seed, layers=4)
    for each in first.sites.values():  # masks only
        each.options = tuple(o for o in each.options if o.is_dense or o.rank is None)
    before = plan(first, speedup=1.3)
    after = plan(analysis(seed + 100, layers=4), speedup=2.0, previous=before)
    masked = [path for path, layer in before.layers.items() if layer.positions is not None]
    assert masked, f"seed {seed}"
    for path in masked:
        outer, inner = before.layers[path], after.layers[path]
        assert np.isin(inner.positions, outer.positions).all(), f"seed {seed}, {path}"
        assert inner.family == outer.family
        if inner.family == "rows":
            assert len(inner.positions) == 16 * len(np.unique(inner.positions // 16))


def test_faithful_uses_energy_ranks_plain_factors_and_one_keep():
    of = analysis(8, profile="faithful", energy=0.95)
    found = plan(of, speedup=2.2)
    assert found.predicted_ms <= of.model_ms / 2.2 * (1 + 1e-9)
    keeps = set()
    for path, layer in found.layers.items():
        kernel = of.sites[path].kernel
        values = np.linalg.svd(kernel.transpose(0, 2, 1, 3).reshape(24, 24), compute_uv=False)
        expected = energy_rank(values, 0.95)
        assert layer.rank in (expected, None)
        if layer.rank is not None:
            plain = plain_factors(kernel, expected)
            np.testing.assert_allclose(layer.factors.first, plain.first, atol=1e-6)
        if layer.positions is not None:
            assert layer.family == "impact"
            keeps.add(layer.keep)
            best = np.argsort(-of.sites[path].impact.ravel())[: len(layer.positions)]
            np.testing.assert_array_equal(layer.positions, np.sort(best))
    assert len(keeps) == 1


def test_faithful_without_a_speed_masks_nothing():
    of = analysis(9, profile="faithful")
    found = plan(of, speedup=None)
    assert found.layers
    assert all(layer.positions is None for layer in found.layers.values())


def test_faithful_takes_the_largest_keep_that_fits():
    of = analysis(10, profile="faithful")
    asked = plan(of, speedup=None).predicted_speedup * 1.3
    found = plan(of, speedup=asked)
    assert asked <= found.predicted_speedup < asked * 1.05


def test_planning_needs_neither_tensorflow_nor_keras(tmp_path):
    analysis(11).save(tmp_path / "analysis.json")
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from espace_tf import Analysis, Plan, plan\n"
        "plan(Analysis.load('analysis.json'), speedup=1.5).save('plan.json')\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in "
        "('tensorflow', 'keras', 'tf_keras') and sys.modules[n]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    made, here = Plan.load(tmp_path / "plan.json"), plan(analysis(11), speedup=1.5)
    assert made.summary() == here.summary()


def every_plan(of: Analysis):
    """(milliseconds of the whole model, damage) of all combinations that the planner may take."""
    other = of.model_ms - sum(each.dense_ms for each in of.sites.values())
    offered = [
        [o for o in each.options if o.is_dense or o.ms < 0.95 * each.dense_ms]
        for each in of.sites.values()
    ]
    for picked in itertools.product(*offered):
        yield other + sum(o.ms for o in picked), sum(o.damage for o in picked)


@pytest.mark.parametrize("seed", range(6))
def test_a_loss_gets_the_least_time_that_it_allows(seed, monkeypatch):
    monkeypatch.setattr(planner, "DEAREST", 1e9)
    of = dataclasses.replace(analysis(seed), target="labels")
    allowed = float(np.random.default_rng(seed).uniform(0.05, 1.0))
    least = min(ms for ms, damage in every_plan(of) if damage <= allowed)
    found = plan(of, max_loss_increase=allowed)
    assert found.predicted_ms == pytest.approx(least, rel=1e-6), f"{seed=}"
    assert sum(layer.damage for layer in found.layers.values()) <= allowed * (1 + 1e-6)
    halved = plan(of, max_loss_increase=2 * allowed, damage_scale=2.0)
    assert halved.predicted_ms == pytest.approx(least, rel=1e-6), f"{seed=}"


@pytest.mark.parametrize("seed", range(6))
def test_no_time_is_bought_that_is_dearer_than_the_bound(seed, monkeypatch):
    of = dataclasses.replace(analysis(seed), target="labels")
    monkeypatch.setattr(planner, "DEAREST", 0.5)
    with pytest.warns(UnreachableSpeedWarning, match="worth the loss") as told:
        found = plan(of, speedup=50.0)
    most = of.model_ms / min(ms for ms, _ in every_plan(of))
    assert f"at most {most:.2f} is possible" in str(told[0].message)
    total = sum(layer.damage for layer in found.layers.values())
    assert total <= 0.5 * math.log(of.model_ms / found.predicted_ms) * (1 + 1e-9)
    # Nothing in reach of it is worth more: a step to any faster plan pays more than the bound.
    for ms, damage in every_plan(of):
        if ms < found.predicted_ms * (1 - 1e-9):
            gained = (found.predicted_ms - ms) / found.predicted_ms
            assert damage - total > 0.5 * gained * (1 - 1e-6), f"{seed=}"
    with pytest.warns(UnreachableSpeedWarning):
        fastest = plan(dataclasses.replace(of, target="no data"), speedup=50.0)
    assert fastest.predicted_ms == pytest.approx(min(ms for ms, _ in every_plan(of)))


def test_a_loss_needs_damages_that_are_losses():
    of = analysis(1)
    with pytest.raises(ValueError, match="analysis with data.*no data; give speedup"):
        plan(of, max_loss_increase=0.1)
    faithful = dataclasses.replace(analysis(1, profile="faithful"), target="labels")
    with pytest.raises(ValueError, match="profile 'faithful'"):
        plan(faithful, max_loss_increase=0.1)
    with pytest.raises(ValueError, match="max_loss_increase must be at least"):
        plan(dataclasses.replace(of, target="labels"), max_loss_increase=0.0)
