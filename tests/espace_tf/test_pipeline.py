"""compress and compress_in_stages: refusals before work, the loop of measuring and planning."""

import dataclasses
import functools
import re
import warnings

import keras
import numpy as np
import pytest

from espace_tf import pipeline
from espace_tf.analysis import analyze
from espace_tf.config import EspaceConfig, EspaceWarning
from espace_tf.network import graph
from espace_tf.network.network import Network
from espace_tf.network.sites import read_sites
from espace_tf.pipeline import compress, compress_in_stages
from espace_tf.planning import search
from espace_tf.planning.planner import UnreachableSpeedWarning
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.option import Option
from espace_tf.training.fine_tune import fine_tune

SEED = 3


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    """Clocks here are made up: nothing may be remembered of them."""
    monkeypatch.setenv("ESPACE_TF_CACHE", "off")


def network() -> keras.Model:
    keras.utils.set_random_seed(SEED)
    inputs = keras.Input((16, 16, 4))
    x = inputs
    for index in range(3):
        x = keras.layers.Conv2D(12, 3, padding="same", activation="relu", name=f"conv{index}")(x)
    x = keras.layers.Conv2D(8, 1, name="point")(keras.layers.MaxPooling2D(2)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x), name="net")


def labelled(count: int = 48):
    rng = np.random.default_rng(SEED)
    return rng.random((count, 16, 16, 4), np.float32), rng.integers(0, 5, count)


def synthetic(network: Network, data, config: EspaceConfig, *_) -> Analysis:
    """An analysis of this very model whose times are what the operations suggest."""
    known = network.layers
    sites = {}
    for site in network.sites:
        options = [Option(ms=1.0, macs=site.macs())]
        for rank in (2, 4, 8) if site.kernel_size == (3, 3) else ():
            macs = site.macs(rank)
            damage = 1.0 / rank
            options.append(Option(rank=rank, ms=macs / site.macs(), damage=damage, macs=macs))
        kernel, bias = known[site.path].get_weights()
        sites[site.path] = SiteAnalysis(
            site=site, kernel=kernel, bias=bias, dense_ms=1.0, options=tuple(options), config=config
        )
    return Analysis(
        fingerprint=network.fingerprint, config=config, sites=sites, model_ms=len(sites) + 1.0
    )


def clock(factor: float, asked: list):
    """A machine on which changed layers take `factor` times what the operations suggest."""

    def measured(reference, small, *_):
        made = small.espace_plan
        asked.append(made)
        macs = {site.path: (site.macs(), site) for site in read_sites(reference.stripped)}
        total = 1.0 + len(macs)
        for path, layer in made.layers.items():
            dense, site = macs[path]
            total += factor * site.macs(layer.rank) / dense - 1
        return made.dense_ms / total

    return measured


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.5])
def test_plans_again_until_the_measured_speed_is_right(monkeypatch, factor):
    asked = []
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", clock(factor, asked))
    model = network()
    small = compress(model, speedup=1.5, verbose=0)
    # The first plan, three corrections at most, and the one that is chosen once more.
    assert len(asked) == 2 if factor == 1.0 else 2 < len(asked) <= 5
    made = small.espace_plan
    assert made.measured_speedup == pytest.approx(1.5, rel=0.1), factor
    assert isinstance(small, keras.Model) and small is not model
    assert small.espace_analysis.fingerprint == made.fingerprint
    assert small(labelled()[0]).shape == (48, 5)
    for path in made.layers:
        assert type(graph.layers(small)[path]).__name__ == "DecomposedConv2D"


def test_a_repeated_call_makes_the_same_plan_on_a_noisy_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("ESPACE_TF_CACHE", str(tmp_path))
    monkeypatch.setattr(analyze, "run", synthetic)
    model, plans, asked = network(), [], []
    noise = iter([1.0, 0.99, 1.01, 0.995, 1.015, 1.0, 0.985] * 9)
    for factor in (1.2, 1.2, 1.6):
        measured = clock(factor, asked)
        patched = lambda *given, measured=measured: measured(*given) * next(noise)  # noqa: E731
        monkeypatch.setattr(search, "_measured_speedup", patched)
        asked.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreachableSpeedWarning)
            made = compress(model, speedup=1.5, verbose=0).espace_plan
        plans.append((search.choices(made), len(asked)))
    (first, took), (again, short), (other, long) = plans
    assert first == again and took > short == 1, "measured once, at the end"
    assert other != first and long > 2, "another machine refutes what was measured before"


def test_an_earlier_speed_is_refuted_where_it_misses_the_wish_today(monkeypatch, tmp_path):
    monkeypatch.setenv("ESPACE_TF_CACHE", str(tmp_path))
    monkeypatch.setattr(analyze, "run", synthetic)
    model, speed = network(), clock(1.2, [])
    for by in (1.0, 0.94):  # less than what refutes by itself
        monkeypatch.setattr(search, "_measured_speedup", lambda *g, by=by: by * speed(*g))
        made = compress(model, speedup=1.5, verbose=0).espace_plan
        assert made.measured_speedup == pytest.approx(1.5, rel=0.05)


def test_the_model_given_stays_as_it_was(monkeypatch):
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", clock(1.0, []))
    model = network()
    before, names = model.get_weights(), [layer.name for layer in model.layers]
    small = compress(model, speedup=1.5, verbose=0)
    assert [layer.name for layer in model.layers] == names
    assert all(map(np.array_equal, before, model.get_weights()))
    assert not hasattr(model, "espace_plan")
    assert small.count_params() < model.count_params()


def test_a_speed_out_of_reach_gives_the_nearest_model_and_both_numbers(monkeypatch):
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", clock(1.0, []))
    with pytest.warns(UnreachableSpeedWarning, match=r"speedup 9 was asked for, 2\.\d\d was meas"):
        small = compress(network(), speedup=9, verbose=0)
    assert small.espace_plan.measured_speedup > 2


@pytest.mark.parametrize("measured", [0.8, 1.0])
@pytest.mark.parametrize("config", [EspaceConfig(), EspaceConfig(profile="faithful", energy=0.5)])
def test_what_is_no_faster_leaves_the_model_as_it_is(monkeypatch, measured, config):
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", lambda *_: measured)
    model, images = network(), labelled()[0]
    speedup = None if config.profile == "faithful" else 1.5
    words = f"the model is returned unchanged: .*measured at {measured:.2f} times the speed"
    with pytest.warns(UnreachableSpeedWarning, match=words) as caught:
        small = compress(model, speedup=speedup, config=config, verbose=0)
    (told,) = caught
    assert ("speedup 1.5 was asked for, but" in str(told.message)) == (speedup is not None)
    made = small.espace_plan
    assert small is not model and made.layers == {} and len(made.skipped) == 4
    assert made.predicted_speedup == made.measured_speedup == 1.0
    assert [type(layer) for layer in small.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_array_equal(small(images), model(images))


def test_summary_names_every_layer_unless_silent(monkeypatch, capsys):
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", clock(1.0, []))
    compress(network(), speedup=1.5, verbose=0)
    assert capsys.readouterr().out == ""
    compress(network(), speedup=1.5)
    printed = capsys.readouterr().out
    for word in ("conv0", "conv1", "conv2", "point", "asked 1.5", "no data"):
        assert word in printed, word


def refuse(*_, **__):
    raise AssertionError("work began before the arguments were checked")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speedup": 1}, "speedup"),
        ({"speedup": None, "max_loss_increase": 0.1}, "needs data.*data=None"),
        ({"data": labelled(), "max_loss_increase": 0}, "max_loss_increase must be at least"),
        ({"data": labelled(), "max_accuracy_drop": "1%"}, "max_accuracy_drop must be a finite"),
        ({"data": labelled(), "min_agreement": 1}, "min_agreement must be below 1: .* Received: 1"),
        ({"data": None, "min_agreement": 0.9}, "min_agreement needs data"),
        (
            {
                "data": labelled(),
                "max_loss_increase": 1,
                "config": EspaceConfig(profile="faithful"),
            },
            "default profile. Received: profile='faithful'",
        ),
        ({"speedup": float("nan")}, "speedup"),
        ({"speedup": "2"}, "speedup"),
        ({"config": {"profile": "faithful"}}, "EspaceConfig"),
        ({"verbose": "yes"}, "verbose"),
        ({"data": np.zeros((0, 16, 16, 4), np.float32)}, "empty|at least one"),
        ({"data": np.zeros((5, 8, 8, 4), np.float32)}, "takes shape"),
        ({"data": np.full((5, 16, 16, 4), np.nan, np.float32)}, "NaN"),
        ({"data": "images.npz"}, "tf.data.Dataset"),
        ({"config": EspaceConfig(include="nothing")}, "excluded"),
        ({"model": "net.keras"}, r"model = keras.models.load_model\('net.keras'\)"),
        ({"model": keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])}, "no convolution"),
    ],
)
def test_arguments_are_refused_before_any_work(monkeypatch, arguments, message):
    monkeypatch.setattr(analyze, "run", refuse)
    arguments = {"speedup": 2.0, **arguments}
    model = arguments.pop("model", None) or network()
    with pytest.raises((TypeError, ValueError), match=message):
        compress(model, **arguments)


def test_weights_that_are_not_finite_are_refused_by_layer(monkeypatch):
    monkeypatch.setattr(analyze, "run", refuse)
    model = network()
    kernel, bias = model.get_layer("conv1").get_weights()
    bias[3] = np.nan
    model.get_layer("conv1").set_weights([kernel, bias])
    with pytest.raises(ValueError, match="layer 'conv1' has NaN"):
        compress(model, speedup=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": None}, "data"),
        ({"stages": 0}, "stages"),
        ({"epochs": 0}, "epochs"),
        ({"race": 1}, "race must be at least 2. Received: 1"),
        ({"race": 5}, "race must be .*4.*5"),
        ({"speedup": None}, "speedup"),
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"teacher": None}, "teacher"),
        ({"checkpoint_dir": "x"}, "checkpoint_dir"),
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"temperature": "a"}, "temperature must be a finite number"),
        ({"optimizer": "zzz"}, "optimizer must be one of .* 'zzz'"),
        ({"callbacks": [3]}, "callbacks must be a list"),
        ({"schedule": "x"}, "schedule must be 'gradual'"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"validation_data": labelled()[0][:, 1:]}, "validation_data must fit the model"),
    ],
)
def test_stages_refuse_before_any_work(monkeypatch, arguments, message):
    monkeypatch.setattr(analyze, "run", refuse)
    with pytest.raises((TypeError, ValueError), match=message):
        compress_in_stages(network(), **{"data": labelled(), "speedup": 2.0, **arguments})


def test_faithful_needs_no_speed(monkeypatch):
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", clock(1.0, []))
    config = EspaceConfig(profile="faithful", energy=0.5)
    small = compress(network(), config=config, verbose=0)
    made = small.espace_plan
    assert made.layers and made.speedup is None
    assert all(layer.positions is None for layer in made.layers.values())


def test_stages_train_and_speed_up_geometrically(monkeypatch):
    asked = []
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", clock(1.0, asked))
    config = EspaceConfig(rounds=1, tolerance=0.5)
    small, histories = compress_in_stages(
        network(), labelled(), speedup=1.96, stages=2, config=config, verbose=0, batch_size=16
    )
    assert [each.speedup for each in asked] == pytest.approx([1.4, 1.4, 1.96, 1.96])
    assert len(histories) == 2
    assert all(np.isfinite(each.history["loss"]).all() for each in histories)
    assert small.espace_plan.speedup == pytest.approx(1.96)


def in_both_orders(*arguments) -> Analysis:
    """`synthetic` with pairs of the other order, which damage more."""
    found = synthetic(*arguments)
    for site in found.sites.values():
        turned = [
            dataclasses.replace(option, order="horizontal", damage=1.1 * option.damage)
            for option in site.options[1:]
        ]
        site.options += tuple(turned)
    return found


def test_stages_race_and_go_on_after_a_crash(monkeypatch, tmp_path):
    """A repeated call neither plans nor trains again what was finished, and ends the same."""
    asked, trained, limit = [], [], []
    monkeypatch.setattr(analyze, "run", in_both_orders)
    monkeypatch.setattr(search, "_measured_speedup", clock(1.0, asked))

    @functools.wraps(fine_tune)
    def training(model, data, **options):
        trained.append(options["epochs"])
        if limit and len(trained) > limit[0]:
            raise KeyboardInterrupt
        return fine_tune(model, data, **options)

    monkeypatch.setattr(pipeline, "fine_tune", training)

    model = network()

    def call(folder):
        config = EspaceConfig(rounds=1, tolerance=0.5, cache_dir=folder)
        options = {"speedup": 1.96, "stages": 2, "race": 4, "config": config, "epochs": 2}
        return compress_in_stages(model, labelled(), batch_size=16, verbose=0, **options)

    whole, _ = call(tmp_path / "whole")
    assert trained == [2, 1, 1, 2]  # both orders run; "ranks only" is what is planned anyway
    for done in range(4):
        limit[:] = [done]
        trained.clear()
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path / "killed")
    limit.clear()
    asked.clear()
    again, histories = call(tmp_path / "killed")
    assert not asked
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert [len(each.history["loss"]) for each in histories] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "data"),
    [("default", "labels"), ("default", "images"), ("default", "none"), ("faithful", "labels")],
)
def test_from_end_to_end(profile, data):
    config = dataclasses.replace(quick(), profile=profile, rounds=2)
    images, labels = labelled()
    given = {"labels": (images, labels), "images": images, "none": None}[data]
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EspaceWarning)  # neither time nor random weights
        small = compress(model, given, speedup=1.5, config=config, verbose=0)
    made = small.espace_plan
    assert made.measured_speedup > 0
    assert {row.path for row in made.summary()} == {"conv0", "conv1", "conv2", "point"}
    assert np.isfinite(small.predict(images, verbose=0)).all()


def quick() -> EspaceConfig:
    options = {"calibration_images": 32, "damage_images": 16, "rounds": 1}
    return EspaceConfig(batch_size=8, reconstruct=0.5, **options)


def trained() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """A network that tells brightness apart, and images."""
    rng = np.random.default_rng(SEED)
    classes = rng.integers(0, 5, 96)
    images = rng.random((96, 16, 16, 4), np.float32) * 0.2 + classes[:, None, None, None] / 5
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, classes, epochs=30, verbose=0)
    return model, (images, classes)


@pytest.mark.slow
def test_one_word_keeps_to_the_default_loss(monkeypatch):
    monkeypatch.setattr(
        search, "_measured_speedup", lambda _, small, *__: small.espace_plan.predicted_speedup
    )
    model, data = trained()
    small = compress(model, data, config=quick(), verbose=0)
    made = small.espace_plan
    assert made.speedup is None and made.layers and made.measured_speedup > 1
    assert made.comparison.images == 64 and made.comparison.loss_increase <= 0.02
    looser = compress(model, data, max_loss_increase=0.5, config=quick(), verbose=0).espace_plan
    assert looser.comparison.loss_increase <= 0.5
    kept = compress(model, data, max_accuracy_drop=0.2, config=quick(), verbose=0).espace_plan
    assert kept.comparison.accuracy_drop <= 0.2
    same = compress(model, data[0], min_agreement=0.9, config=quick(), verbose=0).espace_plan
    assert same.layers and same.comparison.agreement >= 0.9
    with pytest.warns(UnreachableSpeedWarning) as caught:
        both = compress(
            model, data, speedup=2, max_loss_increase=1e-8, config=quick(), verbose=0
        ).espace_plan
    words = r"speedup 2 was asked for; at \d.* the network loses more than max_loss_increase=1e-08"
    assert re.match(words, str(caught[0].message))
    assert both.comparison is None or both.comparison.loss_increase <= 1e-8


def test_a_model_alone_is_enough(monkeypatch):
    monkeypatch.setattr(analyze, "run", synthetic)
    monkeypatch.setattr(search, "_measured_speedup", clock(1.0, []))
    with pytest.warns(EspaceWarning, match="no data and no speedup were given: .* 1.5 times"):
        small = compress(network(), verbose=0)
    assert small.espace_plan.speedup == 1.5
