"""Masks in other forms, against plain NumPy and against what the masks of a plan show."""

import dataclasses
import math

import keras
import numpy as np
import pytest

import espace_tf
from benchmarks import other_masks
from espace_tf.rewriting.apply import densify
from tests import analysed

SEED = 17


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(SEED)
    convolution = {"padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            keras.layers.Conv2D(8, 3, name="one", **convolution),
            keras.layers.Conv2D(8, 3, name="two", **convolution),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(8, 3, name="three", **convolution),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, name="head"),
        ]
    )


@pytest.fixture(scope="module")
def analysis(network):
    random = np.random.default_rng(SEED)
    data = random.random((24, 12, 12, 1), np.float32), random.integers(0, 4, 24)
    with pytest.MonkeyPatch.context() as patch:
        analysed.hurry(patch)
        config = dataclasses.replace(analysed.CONFIG, min_map=4)
        found = analysed.run(network, data, config)
    # As if all time were spent in convolutions.
    total = sum(site.dense_ms for site in found.sites.values())
    return dataclasses.replace(found, model_ms=total, other_ms=0.0)


def test_sums_of_the_four_nearest_computed_positions():
    random = np.random.default_rng(SEED)
    size, positions = (5, 7), np.sort(random.choice(35, 12, replace=False))
    near, weights = other_masks.neighbours(positions, size)
    for row in range(35):
        if row in positions:
            assert near[row, 0] == row and weights[row, 0] == pytest.approx(1, abs=1e-5)
            continue
        far = np.array([(p // 7 - row // 7) ** 2 + (p % 7 - row % 7) ** 2 for p in positions])
        assert sorted(far[np.searchsorted(positions, near[row])]) == sorted(far)[:4], f"row {row}"
        wanted = 1 / far[np.searchsorted(positions, near[row])]
        np.testing.assert_allclose(weights[row], wanted / wanted.sum(), rtol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_skipped_positions_show_those_sums(network, trained):
    plan = espace_tf.Plan.uniform(network, rank_ratio=None, keep=0.3)
    plan = dataclasses.replace(plan, layers={"one": plan.layers["one"]})
    x = np.random.default_rng(SEED).random((3, 12, 12, 1), np.float32)
    shown = other_masks.interpolated(espace_tf.apply(network, plan), plan=plan, trained=trained)
    assert len(shown.trainable_weights) == len(network.trainable_weights) + trained
    layers = [layer.name for layer in shown.layers]
    found = keras.Model(shown.inputs[0], shown.layers[layers.index("one") + 1].output)(x).numpy()
    dense = keras.Model(network.inputs[0], network.get_layer("one").output)(x).numpy()
    rows, positions = dense.reshape(3, 144, 8), plan.layers["one"].positions
    near, weights = other_masks.neighbours(positions, (12, 12))
    wanted = np.einsum("rk,brkc->brc", weights, rows[:, near])
    wanted[:, positions] = rows[:, positions]
    np.testing.assert_allclose(found.reshape(rows.shape), wanted, atol=1e-5)


def test_masks_count_for_less_or_not_at_all(analysis):
    none = other_masks.weighted_plan(analysis, 2.5, math.inf)
    assert none.layers and all(each.family is None for each in none.layers.values())
    free = other_masks.weighted_plan(analysis, 2.5, 0.0)
    assert any(each.family is not None for each in free.layers.values())


def test_layers_with_maps_of_one_size_share_a_mask(analysis):
    sites = {
        path: dataclasses.replace(site, options=tuple(o for o in site.options if not o.rank))
        for path, site in analysis.sites.items()
    }
    made = other_masks.shared_plan(dataclasses.replace(analysis, sites=sites), 4.0)
    masks = [
        layer.positions.tolist()
        for path in ("one", "two")
        if (layer := made.layers.get(path)) and layer.positions is not None
    ]
    assert len(masks) == 2 and masks[0] == masks[1]
    assert made.predicted_speedup == pytest.approx(4.0, rel=0.2)


def test_masks_chosen_anew_leave_the_weights(network, analysis):
    made = other_masks.weighted_plan(analysis, 2.5, 0.0)
    small = espace_tf.apply(network, made)
    random = np.random.default_rng(SEED)
    for weight in small.weights:
        weight.assign(weight + 0.1 * random.normal(size=weight.shape))
    data = random.random((24, 12, 12, 1), np.float32), random.integers(0, 4, 24)
    with pytest.MonkeyPatch.context() as patch:
        analysed.hurry(patch)
        dense = analysed.run(densify(network, small), data, analysis.config)
    again = other_masks.refined(network, small, made, dense)
    for one, other in zip(small.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for path, layer in made.layers.items():
        if layer.positions is not None:
            wanted = dense.sites[path].positions(layer.family, layer.keep)
            np.testing.assert_array_equal(again.get_layer(path).positions, wanted)
