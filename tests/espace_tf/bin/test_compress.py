"""The command from its flags to its files."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from espace_tf import pipeline
from espace_tf.bin import compress
from espace_tf.bin.frame import command
from espace_tf.bin.work import compression
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan

ROOT = Path(__file__).parents[3]
SEED = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network large enough to have something to gain, and data for it, in one folder."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input((24, 24, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(48, 5, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ],
        name="little",
    )
    model.save(folder / "model.keras")
    generator = np.random.default_rng(SEED)
    arrays = {"x": generator.integers(0, 256, (96, 24, 24), np.uint8)}
    arrays |= {"y": generator.integers(0, 3, 96), "x_test": arrays["x"][:32]}
    np.savez(folder / "data.npz", **arrays, y_test=arrays["y"][:32])
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One round with few options: how well it compresses is tested elsewhere."""
    made = compress.config

    def small_config(*given):
        quickly = {"rounds": 1, "calibration_images": 64, "damage_images": 16, "reconstruct": 0.3}
        return dataclasses.replace(made(*given), **quickly, keeps=(0.5,), mask_families=("grid",))

    monkeypatch.setattr(compress, "config", small_config)


def call(*arguments: str) -> int:
    """main() with these flags, which are reset afterwards."""
    with flagsaver.flagsaver():
        try:
            rest = flags.FLAGS(["compress", *arguments])
        finally:
            flags.FLAGS.mark_as_parsed()
        return command.main(compress.COMMAND, rest)


def test_all_results_are_written(files, tmp_path, capsys):
    output = tmp_path / "out"
    status = call(
        *(f"--model={files / 'model.keras'}", f"--dataset={files / 'data.npz'}", "--speedup=1.5"),
        *(f"--output_dir={output}", "--epochs=1", "--formats=float32,int8", "--batch_size=4"),
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    names = {name for name in os.listdir(output) if not name.endswith(".npz")}
    assert names == {
        *("compressed.keras", "plan.json", "model.tflite", "model.int8.tflite"),
        *("report.html", "compress.json", "compress.flags", "events"),
    }
    summary = json.loads((output / "compress.json").read_text())["speeds"]["1.5x"]
    written = keras.models.load_model(output / "compressed.keras", compile=False)
    data = np.load(files / "data.npz")
    images = data["x_test"][..., None] / np.float32(255)
    right = np.mean(written.predict(images, verbose=0).argmax(-1) == data["y_test"])
    assert summary["after"]["accuracy"] == pytest.approx(right)
    before = keras.models.load_model(files / "model.keras").predict(images, verbose=0)
    same = np.mean(written.predict(images, verbose=0).argmax(-1) == before.argmax(-1))
    assert summary["after"]["agreement"] == pytest.approx(same)
    assert summary["exports"][0]["agreement"] == pytest.approx(same, abs=0.05)
    assert summary["after"]["parameters"] == written.count_params()
    assert summary["after"]["macs"] <= summary["before"]["macs"]
    assert summary["before"]["milliseconds"] > 0
    assert [entry["file"] for entry in summary["exports"]] == ["model.tflite", "model.int8.tflite"]
    assert summary["exports"][0]["accuracy"] == pytest.approx(right, abs=0.05)
    assert summary["exports"][1]["bytes"] < summary["exports"][0]["bytes"]
    assert isinstance(Plan.load(output / "plan.json"), Plan)
    assert "times faster" in printed.out
    assert "little" in (output / "report.html").read_text(encoding="utf-8")


def test_a_plan_is_saved_over_a_plan_with_its_arrays_and_over_anything(tmp_path):
    path = tmp_path / "plan.json"
    for position in (1, 2):
        plan = Plan(layers={"conv": LayerPlan(positions=[position])})
        compression._save_plan(plan, path)
    assert len(os.listdir(tmp_path)) == 2  # the first one's arrays are gone
    path.write_text("notes")
    compression._save_plan(plan, path)
    assert Plan.load(path).layers["conv"].positions.tolist() == [2]
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("data", [True, False])
def test_several_speeds_get_a_folder_each_and_a_curve(data, files, tmp_path, capsys):
    output, given = tmp_path / "out", [f"--dataset={files / 'data.npz'}"] if data else []
    speeds = ("--speedup=1.2,1.5", "--speedup=2") if data else ("--speedup=1.2,1.5",)
    arguments = (f"--model={files / 'model.keras'}", f"--output_dir={output}", "--formats=")
    assert call(*arguments, *speeds, *given) == 0, capsys.readouterr().err
    folders = ["1.2x", "1.5x", "2x"] if data else ["1.2x", "1.5x"]
    own = ["compress.flags", "compress.json", "events", "sweep.json", "sweep.svg"]
    assert sorted(os.listdir(output)) == [*folders, *own]
    found = json.loads((output / "compress.json").read_text())["speeds"]
    rows = json.loads((output / "sweep.json").read_text())
    assert [f"{row['asked']:g}x" for row in rows] == ["1x", *folders]
    for folder, row in zip(folders, rows[1:], strict=True):
        assert row["measured"] == found[folder]["speedup"]
        assert row["accuracy"] == found[folder]["after"]["accuracy"]
        assert (row["accuracy"] is not None) == data
        assert (output / folder / "compressed.keras").is_file()
        assert "Speeds" in (output / folder / "report.html").read_text(encoding="utf-8")
    assert (output / "sweep.svg").read_bytes().startswith(b"<?xml")


def test_flags_from_a_file_and_no_data(files, tmp_path, capsys):
    output = tmp_path / "out"
    (tmp_path / "flags").write_text(
        f"--model={files / 'model.keras'}\n--output_dir={output}\n--noreport\n--formats=\n"
    )
    assert call(f"--flagfile={tmp_path / 'flags'}") == 0, capsys.readouterr().err
    names = {name for name in os.listdir(output) if not name.endswith(".npz")}
    assert names == {"compressed.keras", "plan.json", "compress.json", "compress.flags", "events"}


def test_a_budget_alone_decides_about_the_speed(files, tmp_path, capsys, monkeypatch):
    asked = []

    def noted(*given, **options):
        asked.append({name: options.get(name) for name in ("speedup", "min_agreement")})
        return pipeline.compress(*given, **options)

    monkeypatch.setattr(compression, "compress", noted)
    arguments = (f"--model={files / 'model.keras'}", f"--dataset={files / 'data.npz'}")
    arguments += ("--formats=", "--noreport", f"--output_dir={tmp_path / 'out'}")
    assert call(*arguments, "--min_agreement=.5") == 0, capsys.readouterr().err
    assert asked == [{"speedup": None, "min_agreement": 0.5}]
    (found,) = json.loads((tmp_path / "out" / "compress.json").read_text())["speeds"].values()
    assert found["asked_speedup"] is None and found["after"]["agreement"] >= 0.5
    assert "as fast as its budget allows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--min_agreement=1", "--dataset=data.npz"], "--min_agreement must be below 1. Rec"),
        (["--min_agreement=.9"], "--min_agreement needs --dataset"),
        (["--max_loss_increase=0", "--dataset=data.npz"], "--max_loss_increase must be above 0"),
        (["--max_accuracy_drop=-1", "--dataset=data.npz"], "--max_accuracy_drop must be at least"),
        (
            ["--min_agreement=.9", "--dataset=data.npz", "--speedup=2,3"],
            "--min_agreement goes with one --speedup, or none",
        ),
        (
            ["--min_agreement=.9", "--dataset=data.npz", "--profile=faithful"],
            "--min_agreement needs --profile=default. Received: faithful",
        ),
        (["--speedup=1"], "--speedup must be a number above 1, or several. Received: 1"),
        (["--speedup=2,x"], "--speedup must be a number above 1, or several. Received: 2, x"),
        (["--speedup=2", "--speedup=3,2.0"], "must be different numbers. Received: 2, 3, 2.0"),
        (
            ["--model=missing.keras"],
            "--model must be an existing .keras, .h5 or .hdf5 file, or the f",
        ),
        (["--output_dir="], "--output_dir must be a path that is not empty"),
        (["--dataset=missing.npz"], "none of these"),
        (["--formats=int4"], "Received: 'int4'"),
        (["--formats=int8"], "--formats=int8 needs --data"),
        (["--epochs=1"], "--epochs needs --data"),
        (["extra"], "arguments must be flags. Received: extra"),
        (["--include=("], "include"),
        (
            ["--epochs=1", "--dataset=data.npz", "--learning_rate=1"],
            "--learning_rate needs a named",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, words, files, tmp_path, capsys):
    output = tmp_path / "out"
    status = call(f"--model={files / 'model.keras'}", f"--output_dir={output}", *arguments)
    error = capsys.readouterr().err
    assert status == 1
    assert words in error
    assert error.startswith("espace-compress: error: ")
    assert error.count("\n") == 1
    assert not output.is_dir() or os.listdir(output) == []


@pytest.mark.parametrize("flag", ["--runtime=litert", "--formats=float32"])
def test_litert_is_missed_before_any_work(flag, files, tmp_path, capsys, monkeypatch):
    def found(name, *rest, find=importlib.util.find_spec):
        return None if name == "ai_edge_litert" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    output = tmp_path / "out"
    arguments = (f"--model={files / 'model.keras'}", f"--output_dir={output}", "--formats=")
    assert call(*arguments, flag) == 1
    assert "error: ai_edge_litert must be installed for this" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_truncated_model_is_named(name, files, tmp_path, capsys):
    whole = (files / "model.keras").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert call(f"--model={tmp_path / name}", f"--output_dir={tmp_path / 'out'}") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"espace-compress: error: --model '{tmp_path / name}' cannot be read:")
    assert ("it is truncated" in error) == (name == "model.keras")
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", [tf.errors.ResourceExhaustedError, tf.errors.InternalError])
def test_errors_of_tensorflow_are_one_line(kind, files, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise kind(None, None, "OOM when allocating\na tensor")

    monkeypatch.setattr(compression, "Compression", fail)
    assert call(f"--model={files / 'model.keras'}", f"--output_dir={tmp_path / 'out'}") == 1
    assert capsys.readouterr().err == "espace-compress: error: OOM when allocating a tensor\n"


def test_nothing_is_told_of_the_exporter(files, tmp_path, capfd):
    output = tmp_path / "out"
    arguments = (f"--model={files / 'model.keras'}", f"--output_dir={output}", "--noreport")
    assert call(*arguments) == 0
    error = capfd.readouterr().err
    assert not [line for line in error.splitlines() if not line.startswith("espace-compress: ")]


def test_a_folder_with_files_needs_overwrite(files, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert call(f"--model={files / 'model.keras'}", f"--output_dir={tmp_path}") == 1
    assert "--overwrite" in capsys.readouterr().err
    arguments = ("--output_dir=/proc/self/out", f"--model={files / 'model.keras'}")
    assert call(*arguments) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_help_of_the_installed_command_says_what_comes_out():
    program = (
        "import sys; sys.argv = ['espace-compress', '--help']\n"
        "import atexit\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules, 'keras' in sys.modules))\n"
        "from espace_tf.bin import compress; compress.run()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    for words in ("compressed.keras", "Exit status", "--speedup", "--flagfile"):
        assert words in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"  # at once


def test_images_that_mean_nothing_to_the_network_are_warned_of_before_any_work(
    files, tmp_path, capsys, monkeypatch
):
    """Of three classes a third is right: labels are random."""
    monkeypatch.setattr(compression.Compression, "_smaller", lambda *_: 1 / 0)
    output = tmp_path / "out"
    arguments = (f"--model={files / 'model.keras'}", f"--dataset={files / 'data.npz'}")
    assert call(*arguments, f"--output_dir={output}") == 1
    assert "which guessing gives too" in capsys.readouterr().err
