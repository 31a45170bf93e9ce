"""Every benchmark that a page of docs/ names runs, on next to nothing, as a reader would run it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
_NETWORK = "{files}/tiny.keras"
_DATA = "{files}/data.npz"
# The flags that make each short. {files}: the tiny network and data, {out}: a new folder.
SHORT = {
    "applications": (
        *(f"--models={_NETWORK}", "--images={files}/images.npy", "--speedup=1.1"),
        *("--runtimes=tf", "--reconstruct=0", "--output_dir={out}"),
    ),
    "compress_time": (
        *(f"--models={_NETWORK}", f"--data={_DATA}", "--images=24", "--output_dir={out}/time"),
        "--markdown={out}/table.md",
    ),
    "engine": (
        *("--networks=resnet20", "--batches=1", "--threads=1", "--nolitert"),
        *("--rounds=3", "--seconds=0"),
    ),
    "int8": (
        *(f"--models={_NETWORK}", f"--data={_DATA}", "--images=64", "--tune_images=64"),
        *("--test_images=32", "--speedups=1.1", "--rounds=3", "--output_dir={out}/int8"),
    ),
    "litert_files": (f"--models={_NETWORK}", "--batches=1", "--rounds=3"),
    "masked_conv2d": ("--networks=alexnet", "--batches=1", "--keeps=.5", "--turns=1", "--larger"),
    "mask_forms": (
        *(f"--model={_NETWORK}", f"--data={_DATA}", "--speedups=1.3", "--calibration_images=32"),
        *("--holdout=32", "--train_batch=16", "--tune_steps=2", "--tunings=1", "--batch_size=2"),
        "--output_dir={out}/masks",
    ),
    "without_data": (
        *(f"--model={_NETWORK}", "--data={files}/named.npz", "--speedups=1.1", "--images=16"),
    ),
    "budget": (f"--models={_NETWORK}", f"--data={_DATA}", "--images=64"),
    "reconstruct": (
        *(f"--models={_NETWORK}", f"--data={_DATA}", "--images=64", "--test_images=32"),
        *("--speedup=1.1", "--seconds=1", "--tune_images=64", "--tune_epochs=1"),
    ),
    "factors": (
        *(f"--models={_NETWORK}", f"--data_dir={_DATA}", "--calibration_images=32"),
        *("--test_images=32", "--held_out_patches=100", "--output={out}/factors.json"),
    ),
}


def run(folder: Path, program: str, *flags: str) -> str:
    """What a benchmark prints that runs in this folder."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{program}", *flags]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    environment["ESPACE_TF_CACHE"] = str(folder / "cache")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def images(files):
    """The same images as other benchmarks take them: as they are, and under other names."""
    with np.load(files / "data.npz") as data:
        arrays = dict(data)
    x = arrays["x"].astype("float32")[..., None] / 255
    np.save(files / "images.npy", np.tile(x, (6, 1, 1, 1)))
    np.savez(files / "named.npz", x_train=arrays.pop("x"), **arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_benchmark_runs(name, files, images, tmp_path):
    given = (flag.format(files=files, out=tmp_path) for flag in SHORT[name])
    assert run(tmp_path, name, *given).strip()


@pytest.mark.slow
def test_a_stand_in_is_streamed(tmp_path):
    run(tmp_path, "tfds_folders", "imagenet2012", f"--data_dir={tmp_path}/tfds", "--images=640")
    short = ("--train_split=train[:64]", "--image_size=32", "--seconds=0")
    said = run(tmp_path, "streaming", f"--data_dir={tmp_path}/tfds", *short)
    assert "most resident memory" in said


@pytest.mark.slow
def test_a_killed_command_goes_on(files, tmp_path):
    flags = (f"--dataset={files}/data.npz", f"--model={files}/tiny.keras", "--commands=train")
    said = run(tmp_path, "kills", *flags, "--kills=1", "--epochs=1", f"--output_dir={tmp_path}/out")
    assert "train" in said


@pytest.mark.slow
def test_the_pictures_are_drawn(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "docs/pictures/draw.py", f"--output_dir={tmp_path}", "--images=32"],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")}
