"""Recordings of several threads: each has its own calls, of one model and of two."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.network import graph, recording
from espace_tf.network.sites import read_sites

SEED = 8
ROUNDS = 12


def network(library, factor: float):
    """conv multiplies by `factor`, twice adds 1 to that and doubles it."""
    inputs = library.Input((4, 4, 1))
    x = library.layers.Conv2D(1, 1, use_bias=False, name="conv")(inputs)
    x = library.layers.Conv2D(1, 1, name="twice")(x)
    model = library.Model(inputs, x)
    model.get_layer("conv").set_weights([np.full((1, 1, 1, 1), factor, np.float32)])
    model.get_layer("twice").set_weights([np.full((1, 1, 1, 1), 2, "f"), np.full(1, 2, "f")])
    return model


def together(*tasks) -> list[BaseException]:
    """Runs the tasks in threads that start as one; what they raised."""
    barrier, errors = threading.Barrier(len(tasks)), []

    def run(task):
        try:
            barrier.wait(30)
            for index in range(ROUNDS):
                task(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    return errors


def recorder(model, paths, factor: float, shift: float, change: bool):
    """A task that records calls of its own inputs, and checks every one by hand."""

    def replace(path, layer, inputs, original):
        return original(inputs) + (shift if path == paths[0] else 0.0)

    def task(index):
        values = np.full((1, 4, 4, 1), index + 10 * factor, np.float32)
        with recording.record(model, paths, replace if change else None) as calls:
            outputs = model(tf.constant(values), training=False)
        added = shift if change else 0.0
        expected = {"conv": factor * values}
        expected["conv"] = expected["conv"] + (added if paths[0] == "conv" else 0.0)
        expected["twice"] = 2 * expected["conv"] + 2 + (added if paths[0] == "twice" else 0.0)
        assert [call.path for call in calls] == [p for p in ("conv", "twice") if p in paths]
        for call in calls:
            np.testing.assert_allclose(call.outputs, expected[call.path], rtol=1e-5)
        np.testing.assert_allclose(outputs, expected["twice"], rtol=1e-5)

    return task


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("same", [True, False], ids=["one model", "two models"])
def test_threads_do_not_see_each_other(library, same):
    one = network(library, 3.0)
    other = one if same else network(library, 5.0)
    errors = together(
        recorder(one, ["conv", "twice"], 3.0, 100.0, change=True),
        recorder(other, ["twice"], 3.0 if same else 5.0, -7.0, change=True),
        recorder(other, ["conv", "twice"], 3.0 if same else 5.0, 0.0, change=False),
    )
    assert not errors, errors[0]
    for model in (one, other):
        assert not any("call" in vars(layer) for layer in model.layers)


def test_a_thread_may_record_inside_its_own_recording():
    model = network(keras, 3.0)
    with recording.record(model, ["conv"]) as outer:
        with recording.record(model, ["twice"]) as inner:
            model(np.ones((1, 4, 4, 1), np.float32))
    assert [call.path for call in outer] == ["conv"]
    assert [call.path for call in inner] == ["twice"]


def test_a_recording_that_fails_lets_the_next_thread_in():
    model = network(keras, 3.0)

    def fails(index):
        with pytest.raises(RuntimeError, match="stop"), recording.record(model, ["conv"]):
            raise RuntimeError("stop")

    assert together(fails, recorder(model, ["conv"], 3.0, 0.0, change=False)) == []


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_reading_a_model_hooks_none_of_its_layers(library, monkeypatch):
    base = network(library, 2.0)
    x = library.Input((8, 6, 1))
    inner = library.Model(y := library.Input((None, None, 1)), base.get_layer("conv")(y))
    model = library.Model(x, library.layers.Conv2D(2, 3, name="last")(inner(x)))
    hooked, hook = [], recording._hook
    monkeypatch.setattr(
        recording,
        "_hook",
        lambda path, layer, *rest: hooked.append(layer) or hook(path, layer, *rest),
    )
    for each, sizes in ((base, [(4, 4)] * 2), (model, [(8, 6)] * 2)):
        assert [site.input_sizes for site in read_sites(each)] == [(size,) for size in sizes]
        assert not {id(layer) for layer in hooked} & {id(e) for e in graph.layers(each).values()}
