"""analyze that goes on where it was: after an error, after a kill, and never from other answers."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import analysed as here
import keras
import pytest
import tensorflow as tf
from analysed import CONFIG, SEED, network, run, same, samples

from espace_tf.analysis import analyze as analyzing
from espace_tf.analysis import damages, result_cache, statistics
from espace_tf.network.network import Network
from espace_tf.timing import measure


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
    (damages, "_probes", 1),
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
        import dataclasses, os, signal, sys
        sys.path.insert(0, {str(Path(here.__file__).parent)!r})
        import analysed as here
        from espace_tf.analysis import damages
        here.hurry(here.pytest.MonkeyPatch())
        damages._probes = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        config = dataclasses.replace(here.CONFIG, cache_dir={str(tmp_path)!r})
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
    assert counts == {"_probes": 1, "_together": 1}
    same(dataclasses.replace(found, config=CONFIG), labelled)
