"""Every path a user gives: refused with the argument's name, and nothing half-written stays."""

import errno
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import espace_tf
from espace_tf import files
from espace_tf.bin import shared_flags
from espace_tf.bin.frame.run import Run
from espace_tf.records.analysis import Analysis

SEED = 2


def network() -> keras.Model:
    keras.utils.set_random_seed(SEED)
    inputs = keras.Input((10, 10, 2))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling2D()(x)))


def data():
    rng = np.random.default_rng(SEED)
    return rng.random((8, 10, 10, 2), np.float32), rng.integers(0, 3, 8)


def save_plan(path):
    espace_tf.Plan(layers={"conv": espace_tf.LayerPlan(positions=[1])}).save(path)


def save_analysis(path):
    Analysis(fingerprint="f", config=espace_tf.EspaceConfig(), sites={}).save(path)


def cache(path):
    config = espace_tf.EspaceConfig(cache_dir=path, keeps=(), mask_families=())
    espace_tf.analyze(network(), config=config, verbose=0)


def tune(path):
    espace_tf.fine_tune(network(), data(), checkpoint_dir=path, batch_size=4, verbose=0)


def call_command(path):
    """A command makes its folder ready; raises what it prints."""
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(output_dir=str(path)):
        Run("compress", shared_flags.COMMON).begin([])


FILES = {
    "plan": (save_plan, "path", "a.json"),
    "analysis": (save_analysis, "path", "a.json"),
    "tflite": (lambda path: espace_tf.export_tflite(network(), path), "path", "a.tflite"),
    "report": (lambda path: espace_tf.report(espace_tf.Plan(), path), "path", "a.html"),
}
FOLDERS = {
    "cache_dir": (cache, "cache_dir", "stages"),
    "checkpoint_dir": (tune, "checkpoint_dir", "run"),
    "output_dir": (call_command, "--output_dir", "out"),
    "saved_model": (
        lambda path: espace_tf.export_saved_model(network(), path),
        "path",
        "served",
    ),
}
each_file = pytest.mark.parametrize(("write", "name", "file"), FILES.values(), ids=list(FILES))
ALL = {**FILES, **FOLDERS}
each = pytest.mark.parametrize(("write", "name", "file"), ALL.values(), ids=list(ALL))


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@each
def test_an_empty_path(write, name, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{name} must"):
        write("")
    assert everything(tmp_path) == []


@each
def test_below_a_file(write, name, file, tmp_path):
    (tmp_path / "thesis").write_text("mine")
    with pytest.raises(OSError, match=f"{name} .*thesis") as caught:
        write(tmp_path / "thesis" / file)
    assert "file" in str(caught.value) and f"give another {name}" in str(caught.value)
    assert everything(tmp_path) == ["thesis"]


@each_file
def test_a_missing_folder(write, name, file, tmp_path):
    words = "path must lie in an existing folder.*missing' does not exist: make it first"
    with pytest.raises(FileNotFoundError, match=words):
        write(tmp_path / "missing" / file)
    assert everything(tmp_path) == []


@each_file
def test_a_folder_in_the_place_of_a_file(write, name, file, tmp_path):
    (tmp_path / file).mkdir()
    with pytest.raises(IsADirectoryError, match="path must be that of a file.*add a file's name"):
        write(tmp_path / file)
    assert everything(tmp_path) == [file]


@pytest.mark.parametrize("kind", ["cache_dir", "checkpoint_dir", "output_dir"])
def test_a_file_in_the_place_of_a_folder(kind, tmp_path):
    write, name, file = FOLDERS[kind]
    (tmp_path / file).write_text("mine")
    with pytest.raises(NotADirectoryError, match=f"{name} must be a folder.*a file; give another"):
        write(tmp_path / file)
    assert (tmp_path / file).read_text() == "mine"


@each
def test_a_folder_that_cannot_be_written(write, name, file, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(PermissionError, match=name):
        write(tmp_path / file)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@each
def test_a_full_disk(write, name, file, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / file).mkdir() if name != "path" else None
    before = everything(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    if file in ("out", "served"):
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match=f"{name} .*No space left.*make room on that disk") as caught:
        write(tmp_path / file)
    assert caught.value.errno == errno.ENOSPC
    assert [each for each in everything(tmp_path) if (tmp_path / each).is_file()] == []
    assert set(before) <= set(everything(tmp_path))


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("existing", [False, True])
def test_an_analysis_is_replaced_as_a_pair(tmp_path, monkeypatch, fails_at, existing):
    path, replace, calls = tmp_path / "a.json", os.replace, []
    if existing:
        save_analysis(path)
    before = {name: (tmp_path / name).read_bytes() for name in everything(tmp_path)}

    def failing(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="path .*Input/output error"):
        save_analysis(path)
    assert {name: (tmp_path / name).read_bytes() for name in everything(tmp_path)} == before


def test_other_things_than_paths():
    for write, name, _ in ALL.values():
        if write is not call_command:  # a flag is always a text
            with pytest.raises(TypeError, match=f"{name} must be a path"):
                write(3)
    with pytest.raises(ValueError, match="plan must be a path"):
        files.checked_path("a\0b", "plan")
