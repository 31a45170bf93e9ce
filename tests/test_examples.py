"""Every example in a docstring runs and shows what it says."""

import doctest
import functools
import importlib
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import espace_tf
from espace_tf.analysis import analyze as times
from espace_tf.network.sites import read_sites
from espace_tf.objectives import losses
from espace_tf.records.comparison import Comparison
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan

ROOT = Path(__file__).parent.parent
FOLDERS = ("espace_tf", "keras_layers", "kernels")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SEED = 19


def module_names() -> list[str]:
    """Of all modules with an example."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = []
    for path in paths:
        if ">>> " in path.read_text():
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if parts[0] == "espace_tf" else ("espace_tf", *parts))
            found.append(name.removesuffix(".__init__"))
    return found


class Checker(doctest.OutputChecker):
    """What an example shows must come; where it shows nothing, progress and values may."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


class Distiller(keras.Model):
    """A model with a constructor, a step and a loss of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)

    def train_step(self, data):
        return super().train_step(data)


def network() -> keras.Model:
    keras.utils.set_random_seed(SEED)
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, 4, "same", use_bias=False, name="conv1")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D()(x)
    made = keras.Model(inputs, layers.Dense(10, "softmax", name="logits")(x), name="network")
    made.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What examples take for granted: trained networks, data, and what was made of them."""
    random = np.random.default_rng(SEED)
    images, labels = random.random((24, 32, 32, 3), "float32"), random.integers(0, 10, 24)
    model = network()
    uniform = Plan.uniform(model, rank_ratio=0.5, keep=0.5)
    small = espace_tf.apply(model, uniform)
    small.compile("adam", "sparse_categorical_crossentropy")
    config = espace_tf.EspaceConfig(keeps=(0.5,), mask_families=("grid",), rounds=1)
    analysis = espace_tf.analyze(model, (images, labels), config=config, verbose=0)
    folder = tmp_path_factory.mktemp("given")
    analysis.save(folder / "analysis.json")
    espace_tf.export_tflite(small, folder / "model.tflite")
    np.savez(folder / "digits.npz", x=random.random((1797, 8, 8)))
    names = {"model": model, "small": small, "other": small, "teacher": model, "config": config}
    names |= {"images": images, "labels": labels, "data": (images, labels), "batch": images[:4]}
    names |= {"train": (images, labels), "test": (images, labels), "x": images, "y": labels}
    names |= {"np": np, "tf": tf, "keras": keras, "espace_tf": espace_tf, "losses": losses}
    names |= {"compress": espace_tf.compress, "fine_tune": espace_tf.fine_tune, "Plan": Plan}
    names |= {"analysis": analysis, "site": analysis.sites["conv2"], "LayerPlan": LayerPlan}
    names |= {"sites": read_sites(model), "Comparison": Comparison, "strip": espace_tf.strip}
    names |= {"conv": model.get_layer("conv1")}
    names |= {"distiller": Distiller(model.inputs, model.outputs), "apply": espace_tf.apply}
    names |= {"signature": tf.TensorSpec((None, 32, 32, 3)), "train_step": lambda batch: 0.0}
    names |= {"export_tflite": espace_tf.export_tflite, "report": espace_tf.report}
    return SimpleNamespace(names=names, folder=folder)


@functools.cache
def mobilenet(weights: None) -> keras.Model:
    """Made once, for several examples."""
    return made_by_keras(weights=weights)


made_by_keras = keras.applications.MobileNet


@pytest.fixture(autouse=True)
def cheap(monkeypatch, given, tmp_path):
    """Large networks are built once, and files are written where nothing else is."""
    monkeypatch.setattr(times, "_TIMING_SECONDS", 2.0)
    monkeypatch.setattr(keras.applications, "MobileNet", mobilenet)
    monkeypatch.chdir(tmp_path)
    for path in given.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())


# The networks are not trained: some of their answers change.
@pytest.mark.filterwarnings("ignore::espace_tf.EspaceWarning")
@pytest.mark.parametrize("name", module_names())
def test_examples(name, given, capsys):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(Checker(), optionflags=OPTIONS)
    found = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    examples = [each for each in found if each.examples]
    assert examples, f"{name} has examples that doctest does not find"
    for example in examples:
        example.globs = {**vars(module), **given.names}
        runner.run(example, clear_globs=False)
    assert not runner.summarize(verbose=False).failed, capsys.readouterr().out
