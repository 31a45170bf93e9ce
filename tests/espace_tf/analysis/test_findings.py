"""What analyze finds out about a network, and what it refuses."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from analysed import (
    CONFIG,
    LIBRARIES,
    SEED,
    network,
    run,
    same,
    samples,
)
from responses import response_error

from espace_tf.analysis import offers
from espace_tf.analysis.analyze import analyze
from espace_tf.network import graph
from espace_tf.numerics.factors import reconstruct
from espace_tf.numerics.masks import damage


@LIBRARIES
def test_labelled_images(library, quick):
    model, (x, y) = network(library), samples()
    weights, before = model.get_weights(), np.asarray(model(x))
    found = run(model, (x, y))
    assert found.target == "labels" and found.images == 24 and found.model_ms == 1.5
    assert found.fingerprint == graph.fingerprint(model)
    assert list(found.sites) == ["first", "second"] and "depthwise" in found.skipped["depthwise"]
    # The 8 x 8 map of the depthwise layer's reader is 6 x 6: below min_map, never masked.
    assert found.sites["second"].impact is None
    assert {option.family for option in found.sites["second"].options} == {None}
    first = found.sites["first"]
    assert first.impact.shape == (10, 10) and first.score.shape == (10, 10)
    assert {option.family for option in first.options} == {None, *CONFIG.mask_families}
    for site in found.sites.values():
        dense, *others = site.options
        assert dense.is_dense and dense.damage == dense.error == 0 and dense.ms == site.dense_ms
        assert others and all(option.damage >= 0 and option.ms > 0 for option in others)
    assert all(map(np.array_equal, model.get_weights(), weights))
    np.testing.assert_array_equal(np.asarray(model(x)), before)


def test_options_mean_what_they_say(labelled):
    parts, damages_found = [], []
    for site in labelled.sites.values():
        (tried,) = site.rank_probes
        for option in site.options:
            part = [0.0, 0.0]
            if option.rank:
                factors = site.factors(option.rank, option.order)
                kernel = reconstruct(factors, option.order, site.site.groups)
                error = response_error(site.kernel, kernel, site.covariance)
                assert option.error == pytest.approx(error, rel=0.5, abs=0.02)
                part[0] = option.error * tried[1] / tried[0]
            positions = None
            if option.family:
                (masked,) = site.mask_probes
                positions = site.positions(option.family, option.keep)
                predicted = damage(positions, (10, 10), site.damage_table)
                part[1] = predicted * masked[1] / masked[0]
            assert option.macs == site.site.macs(option.rank, option.order, positions)
            parts.append(part)
            damages_found.append(option.damage)
    # One scale for all ranks and one for all masks: what they lost together.
    scales, *_ = np.linalg.lstsq(np.array(parts), damages_found, rcond=None)
    assert (scales > 0).all()
    np.testing.assert_allclose(parts @ scales, damages_found, rtol=1e-5, atol=1e-12)


def test_masks_of_one_family_are_nested(labelled):
    site = labelled.sites["first"]
    for family in CONFIG.mask_families:
        assert set(site.positions(family, 0.25)) <= set(site.positions(family, 0.5))


def test_unlabelled_images_give_the_same_for_the_same_seed(quick):
    model, (x, _) = network(), samples()
    found = run(model, x)
    assert found.target == "drawn labels"
    same(found, run(model, x))
    other = run(model, x, dataclasses.replace(CONFIG, seed=1))
    assert not np.array_equal(found.sites["first"].impact, other.sites["first"].impact)


def test_a_regression_without_a_loss_is_projected(quick):
    found = run(network(head="number"), samples()[0])
    assert found.target == "projections"
    assert all(np.isfinite(option.damage) for option in found.sites["first"].options)
    assert found.sites["first"].rank_probes[0][1] > 0


@LIBRARIES
def test_a_fixed_batch_is_kept(library, quick):
    inputs = library.Input((10, 10, 3), batch_size=5)
    maps = library.layers.Conv2D(4, 3, activation="relu")(inputs)
    reshape = library.ops.reshape if library is keras else tf.reshape
    scores = library.layers.Dense(4, activation="softmax")(reshape(maps, (5, 256)))
    found = run(library.Model(inputs, scores), (samples()[0], samples()[1] % 4))
    assert found.target == "labels" and found.config.batch_size == 5


def test_several_labels_have_a_loss_of_their_own(quick):
    model, (x, _) = network(head="sigmoid"), samples()
    y = np.random.default_rng(SEED).integers(0, 2, model(x).shape).astype(np.float32)
    model.compile(loss=keras.losses.BinaryCrossentropy(), run_eagerly=True)
    found = run(model, (x, y))
    assert found.target == "labels"
    assert run(model, x).target == "drawn labels"


def test_without_data_the_weights_decide(quick):
    found = run(network(), None)
    assert found.target == "no data" and found.images == 0
    first = found.sites["first"]
    assert first.covariance is None and first.score is None and first.rank_probes == ()
    assert {option.family for option in first.options} == {None, "rows", "columns", "grid"}
    for option in first.options:
        assert option.damage == pytest.approx(option.error + 1 - option.keep)


def test_a_dataset_that_does_not_say_its_size(quick, labelled):
    config = dataclasses.replace(CONFIG, calibration_images=500)
    data = tf.data.Dataset.from_tensor_slices(samples()).batch(10)
    found = run(network(), data, config)
    assert found.images == 24
    same(found, labelled)


def test_real_times(monkeypatch):
    monkeypatch.setattr(offers, "_SECONDS", 0.0)
    config = dataclasses.replace(CONFIG, include="second")
    found = run(network(), None, config)
    assert found.skipped["first"] == "excluded by the configuration"
    options = found.sites["second"].options
    assert found.model_ms > 0 and all(option.ms > 0 for option in options)
    assert 2 <= sum(option.measured for option in options)


def test_progress_is_shown_if_asked(quick, capsys):
    analyze(network(), None, config=CONFIG, verbose=0)
    assert capsys.readouterr().out == ""
    analyze(network(), None, config=CONFIG, verbose=1)
    assert "times of layers" in capsys.readouterr().out


def spoiled(path):
    model = network()
    layer = graph.layers(model)[path]
    layer.set_weights([np.full_like(weight, np.nan) for weight in layer.get_weights()])
    return model


X, Y = samples(8)


@pytest.mark.parametrize(
    "model, data, words",
    [
        (network, (X[:0], Y[:0]), "empty"),
        (network, (X[:, :9], Y), r"takes shape \(None, 10, 10, 3\).*\(1, 9, 10, 3\)"),
        (network, (X, Y[:5]), "equally many"),
        (network, np.where(X > 0.9, np.nan, X), "NaN"),
        (network, (X, np.zeros((8, 3))), "loss must be given"),
        (lambda: network(head="number"), (X, np.zeros((8, 1))), "loss must be given"),
        (lambda: spoiled("first"), (X, Y), "'first' has NaN"),
        (lambda: spoiled("head"), (X, Y), "'head' has NaN"),
        (
            lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
            None,
            "no convolution that may be touched: it has none",
        ),
        (
            lambda: keras.Sequential([keras.Input((None, None, 2)), keras.layers.Conv2D(2, 3)]),
            None,
            "config must have an input_size",
        ),
    ],
)
def test_bad_input_is_refused_in_words(model, data, words):
    with pytest.raises(ValueError, match=words):
        run(model(), data)


def test_labels_that_are_not_finite():
    with pytest.raises(ValueError, match="first batch must be finite. Received: nan"):
        run(network(head="number"), (X, np.full((8, 1), np.nan)), loss="mse")


@pytest.mark.parametrize("model, data", [("net", None), (network(), "images")])
def test_things_of_another_kind(model, data):
    with pytest.raises(TypeError, match="str"):
        run(model, data)
