"""The pages in docs/ and the README: their Python runs in order, what they name is there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import espace_tf
from espace_tf.analysis import analyze as times

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
SEED = 31
# Blocks of "py" take minutes; most of their calls are made by examples of docstrings, too.
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> str:
    return "\n".join(BLOCK.findall(page.read_text()))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def network(size: int) -> keras.Model:
    keras.utils.set_random_seed(SEED)
    made = keras.Sequential(
        [
            keras.Input((size, size, 3)),
            keras.layers.Conv2D(8, 3, size // 8, "same", activation="relu"),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="stem"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5, "softmax", name="head"),
        ]
    )
    made.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


# The networks are not trained: some of their answers change.
@pytest.mark.filterwarnings("ignore::espace_tf.EspaceWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(times, "_TIMING_SECONDS", 2.0)
    random = np.random.default_rng(SEED)
    images, labels = random.random((24, 32, 32, 3), "float32"), random.integers(0, 5, 24)
    # A small network for one whose weights would be fetched, and photographs.
    monkeypatch.setattr(keras.applications, "ResNet50", lambda: network(224))
    saved = network(32)
    saved.optimizer.build(saved.trainable_variables)  # or Keras warns when it loads the file
    saved.save("network.keras")
    (tmp_path / "photos").mkdir()
    for index in range(8):
        picture = random.integers(0, 256, (40, 50, 3), "uint8")
        keras.utils.save_img(tmp_path / "photos" / f"{index}.png", picture)
    names = {"espace_tf": espace_tf, "keras": keras, "np": np, "tf": tf}
    names |= {"model": network(32), "images": images, "labels": labels, "data": (images, labels)}
    exec(compile(blocks(page), str(page), "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=str)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"\bmake ([a-z][a-z-]+)\b(?=[`\s,;)]|$)", text):
        if re.search(rf"(`|    )make {target}\b", text):
            assert target in targets, f"the Makefile has no target {target}"
    for script in re.findall(r"\bpython(?: -W ignore)? ((?:\w+/)+\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"\bpython -m ((?:benchmarks|espace_tf)[\w.]*)", text):
        if module.endswith(".NAME"):
            continue
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), module


def test_the_reference_has_every_public_name():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    last = {each.rpartition(".")[2] for each in shown}
    missing = set(espace_tf.__all__) - last - {"keras_layers", "ops"}
    missing |= set(espace_tf.ops.__all__) - last
    missing |= set(espace_tf.keras_layers.__all__) - last
    assert not missing, f"docs/api/ shows no {sorted(missing)}"


def test_the_first_page_names_the_wheel_of_this_version():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    named = re.findall(r"espace_tf-([\d.]+)-2", (ROOT / "docs" / "index.md").read_text())
    assert set(named) == {version[1]}


def test_the_table_of_versions_is_as_its_command_writes_it():
    program = (
        "import sys; sys.path.insert(0, 'release'); import matrix\n"
        "text = open('docs/tested.md', encoding='utf-8').read()\n"
        "assert matrix.page(matrix.known(text)) == text"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_what_the_matrix_of_versions_runs_is_there():
    program = (
        "import sys; sys.path.insert(0, 'release'); import matrix, pathlib\n"
        "gone = [each for each in matrix.TESTS if not (pathlib.Path('tests') / each).exists()]\n"
        "assert not gone, gone"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_notebook_is_a_page():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    printed = {"output_type": "stream", "name": "stdout", "text": ["two\n", "lines\n"]}
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "Text"]},
            {"cell_type": "code", "source": ["print(x)"], "outputs": [printed]},
            {"cell_type": "code", "source": ["y = 1"], "outputs": []},
        ]
    }
    assert hooks.cells(notebook, "a.ipynb").split("\n\n") == [
        *("# Title\nText", "[As a notebook](a.ipynb)", "```python\nprint(x)\n```"),
        *("```text\ntwo\nlines\n```", "```python\ny = 1\n```"),
    ]
