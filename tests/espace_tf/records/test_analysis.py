"""analyze: what it finds, how it resumes, what it refuses."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.analysis import analyze as analyzing
from espace_tf.analysis import damages, offers, result_cache, statistics
from espace_tf.analysis.analyze import analyze
from espace_tf.config import EspaceConfig
from espace_tf.network import graph
from espace_tf.network.network import Network
from espace_tf.numerics.factors import reconstruct, response_error
from espace_tf.numerics.masks import damage
from espace_tf.records.analysis import Analysis
from espace_tf.timing import measure

SEED = 7
CONFIG = EspaceConfig(calibration_images=24, damage_images=8, keeps=(0.5, 0.25))
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def network(library=keras, head="softmax", seed=SEED):
    library.utils.set_random_seed(seed)
    layers, x = library.layers, library.Input((10, 10, 3))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Conv2D(12, 3, groups=2, name="second")(y)
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    units, activation = (1, None) if head == "number" else (5, head)
    return library.Model(x, layers.Dense(units, activation=activation, name="head")(y))


def samples(count=24):
    random = np.random.default_rng(SEED)
    x = random.random((count, 10, 10, 3), np.float32)
    return x, random.integers(0, 5, count)


def hurry(patch):
    """Times by multiply-accumulates: nothing is measured, results are the same every time."""
    patch.setattr(
        offers,
        "_measure",
        lambda analysis, options, *_: {option: 1e-6 * option.macs for option in options},
    )
    patch.setattr(measure, "alternate", lambda calls, **options: [1.5] * len(calls))
    patch.setattr(analyzing, "_fused", lambda *_: None)  # as without a native binary


@pytest.fixture
def quick(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def labelled():
    """The analysis of network() with samples()."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        return run(network(), samples())


def run(model, data, config=CONFIG, **options):
    return analyze(model, data, config=config, verbose=0, **options)


def same(one, other, tolerance=0.0):
    """Whether two analyses hold the same."""
    for name in ("fingerprint", "skipped", "model_ms", "baseline_loss", "target", "images"):
        assert getattr(one, name) == getattr(other, name), name
    assert list(one.sites) == list(other.sites)
    for path, site in one.sites.items():
        twin = other.sites[path]
        assert site.site == twin.site and site.options == twin.options
        assert site.rank_probes == twin.rank_probes and site.mask_probes == twin.mask_probes
        for name in ("kernel", "bias", *analyzing._STATISTICS):
            ours, theirs = getattr(site, name), getattr(twin, name)
            assert (ours is None) == (theirs is None), name
            if ours is not None:
                limit = tolerance * np.abs(ours).max()
                np.testing.assert_allclose(theirs, ours, rtol=0, atol=limit, err_msg=name)


@LIBRARIES
def test_labelled_images(library, quick):
    model, (x, y) = network(library), samples()
    weights, before = model.get_weights(), np.asarray(model(x))
    found = run(model, (x, y))
    assert found.target == "labels" and found.images == 24 and found.model_ms == 1.5
    assert found.fingerprint == graph.fingerprint(model)
    assert list(found.sites) == ["first", "second"] and "depthwise" in found.skipped["depthwise"]
    loss = -np.log(before[np.arange(8), y[:8]]).mean()
    assert found.baseline_loss == pytest.approx(loss, rel=1e-5)
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
                covariance = (
                    list(site.covariance) if len(site.covariance) > 1 else site.covariance[0]
                )
                error = response_error(site.kernel, kernel, covariance)
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


def test_large_networks_are_tried_on_fewer_images(labelled, monkeypatch):
    config = dataclasses.replace(CONFIG, damage_images=64)
    # A rank and a mask of the first layer, a rank of the second one.
    macs = 3 * sum(site.site.macs() for site in labelled.sites.values())
    for affordable, images in ((1000, 64), (20.5, 20), (0, 8)):
        monkeypatch.setattr(damages, "_PROBE_MACS", affordable * macs)
        assert damages.probe_images(labelled.sites, config) == images
    config = dataclasses.replace(CONFIG, damage_images=3)
    assert damages.probe_images(labelled.sites, config) == 3


def test_masks_of_one_family_are_nested(labelled):
    site = labelled.sites["first"]
    for family in CONFIG.mask_families:
        assert set(site.positions(family, 0.25)) <= set(site.positions(family, 0.5))


def test_unlabelled_images_give_the_same_for_the_same_seed(quick):
    model, (x, _) = network(), samples()
    found = run(model, x)
    assert found.target == "drawn labels" and found.baseline_loss is None
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
    assert found.baseline_loss == pytest.approx(model.evaluate(x[:8], y[:8], verbose=0), rel=1e-5)
    assert run(model, x).target == "drawn labels"


def test_without_data_the_weights_decide(quick):
    found = run(network(), None)
    assert found.target == "no data" and found.images == 0 and found.baseline_loss is None
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


class BrokenError(Exception):
    pass


def count_calls(monkeypatch, module, name, counts, fail=False):
    original = getattr(module, name)

    def counted(*args, **kwargs):
        counts[name] = counts.get(name, 0) + 1
        if fail:
            raise BrokenError(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)


STAGES = [
    (statistics, "input_moments", 1),
    (statistics, "output_statistics", 1),
    (analyzing, "_timed", 2),
    (measure, "alternate", 1),
    (damages, "_probe", 2),
    (damages, "_together", 1),
]


def test_what_was_finished_before_an_error_is_not_done_again(
    tmp_path, quick, labelled, monkeypatch
):
    monkeypatch.setenv("ESPACE_TF_CACHE", "off")  # times of earlier tests
    model, data = network(), samples()
    config = dataclasses.replace(CONFIG, cache_dir=tmp_path)
    for index, (module, name, _) in enumerate(STAGES):
        with monkeypatch.context() as patch:
            counts: dict = {}
            for finished, label, _ in STAGES[:index]:
                count_calls(patch, finished, label, counts)
            count_calls(patch, module, name, counts, fail=True)
            with pytest.raises(BrokenError):
                run(model, data, config)
        # Only the stage that failed the time before is computed, then the next one fails.
        before = {STAGES[index - 1][1]: STAGES[index - 1][2]} if index else {}
        assert counts == {**before, name: 1}
    found = run(model, data, config)
    same(dataclasses.replace(found, config=CONFIG), labelled)
    with monkeypatch.context() as patch:
        counts = {}
        for module, name, _ in STAGES:
            count_calls(patch, module, name, counts)
        same(run(model, data, config), found)
        assert counts == {}
        # As after `make native`: times, and what depends on them, are found anew.
        patch.setattr(result_cache, "environment", lambda: {"operator": "another"})
        run(model, data, config)
    assert counts == {"_timed": 2, "alternate": 1, "_together": 1}


def key(model, *question) -> str:
    return analyzing._key(Network.read(model), *question)


def test_other_questions_are_not_answered_from_the_cache(tmp_path):
    model, (x, y) = network(), samples()
    entropy = keras.losses.SparseCategoricalCrossentropy
    asked = [
        (model, (x, y), CONFIG, None),
        (model, x, CONFIG, None),
        (model, None, CONFIG, None),
        (model, (x, (y + 1) % 5), CONFIG, None),
        (model, (x, y), dataclasses.replace(CONFIG, seed=9), None),
        (model, (x, y), CONFIG, entropy()),
        (model, (x, y), CONFIG, entropy(from_logits=True)),
        (model, (x, y), CONFIG, [keras.losses.sparse_categorical_crossentropy]),
        (network(seed=SEED + 1), (x, y), CONFIG, None),
    ]
    asked_once = [(model, (x, y), CONFIG, loss) for loss in (lambda y, p: p - y, lambda y, p: p)]
    assert len({key(*question) for question in asked_once}) == 2
    keys = [key(*question) for question in asked]
    assert len(set(keys)) == len(keys) and not any(" at 0x" in key for key in keys)
    elsewhere = dataclasses.replace(CONFIG, cache_dir=tmp_path, rounds=7, tolerance=0.3)
    assert key(network(), (x, y), elsewhere, None) == keys[0]
    model.compile(loss=entropy())
    assert key(*asked[0]) == keys[5]
    model.compile(loss=entropy(), loss_weights=[2.0])
    assert key(*asked[0]) not in keys
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(24).batch(8)
    assert key(model, shuffled, CONFIG, None) is None


def test_a_killed_process_is_resumed(tmp_path, quick, labelled, monkeypatch):
    script = f"""
        import importlib.util, os, signal
        spec = importlib.util.spec_from_file_location("here", {str(Path(__file__))!r})
        here = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(here)
        here.hurry(here.pytest.MonkeyPatch())
        here.damages._probe = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        config = here.dataclasses.replace(here.CONFIG, cache_dir={str(tmp_path)!r})
        loss = here.keras.losses.SparseCategoricalCrossentropy()
        here.run(here.network(), here.samples(), config, loss=loss)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    counts: dict = {}
    for module, name, _ in STAGES:
        count_calls(monkeypatch, module, name, counts)
    config = dataclasses.replace(CONFIG, cache_dir=tmp_path)
    loss = keras.losses.SparseCategoricalCrossentropy()
    found = run(network(), samples(), config, loss=loss)
    assert counts == {"_probe": 2, "_together": 1}
    same(dataclasses.replace(found, config=CONFIG), labelled)


@pytest.mark.parametrize("data", [samples(), None], ids=["data", "no data"])
def test_round_trip(tmp_path, quick, data):
    model = network()
    config = dataclasses.replace(
        CONFIG, include=["first", "second"], exclude="nothing", cache_dir=tmp_path / "cache"
    )
    found = run(model, data, config)
    found.save(tmp_path / "a.json")
    loaded = Analysis.load(tmp_path / "a.json", model=model)
    same(found, loaded, 1e-6)
    assert loaded.config == dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))
    for path, site in found.sites.items():
        twin, option = loaded.sites[path], site.options[1]
        ours, theirs = (each.factors(option.rank, option.order) for each in (site, twin))
        ours, theirs = (reconstruct(f, option.order, site.site.groups) for f in (ours, theirs))
        np.testing.assert_allclose(theirs, ours, atol=1e-3)
        for option in site.options:
            if option.family:
                where = (option.family, option.keep)
                np.testing.assert_array_equal(twin.positions(*where), site.positions(*where))


def test_a_configuration_with_functions_is_saved(tmp_path, quick):
    config = dataclasses.replace(CONFIG, include=lambda path: path == "first")
    run(network(), None, config).save(tmp_path / "a.json")
    assert list(Analysis.load(tmp_path / "a.json").sites) == ["first"]


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
            "no convolution that can be analysed: it has none",
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
