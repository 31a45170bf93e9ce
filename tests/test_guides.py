"""The scripts of docs/guides, in short form, as a reader runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SEED = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network and images for it."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 5, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    model.save(folder / "model.keras")
    random = np.random.default_rng(SEED)
    x, y = random.integers(0, 256, (128, 16, 16), np.uint8), random.integers(0, 3, 128)
    np.savez(folder / "data.npz", x=x, y=y, x_test=x[:20], y_test=y[:20])
    return folder


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "docs" / "guides" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_a_trained_model_to_a_phone(files, tmp_path):
    printed = run(
        *("phone.py", f"--model={files / 'model.keras'}", f"--data={files / 'data.npz'}"),
        *("--images=64", "--speedup=1.2", "--epochs=1", f"--output_dir={tmp_path}"),
    )
    for name in ("original.tflite", "original.int8.tflite", "small.tflite", "small.int8.tflite"):
        assert name in printed and (tmp_path / name).stat().st_size > 1000


@pytest.mark.slow
def test_with_pruning_and_qat(files, tmp_path):
    printed = run(
        *("pruning.py", f"--model={files / 'model.keras'}", f"--data={files / 'data.npz'}"),
        *("--images=64", "--speedup=1.2", "--steps=3", f"--output_dir={tmp_path}"),
    )
    assert "50% of the weights are 0" in printed and "at most 16 values in a kernel" in printed
    assert re.search(r"int8 file, QAT .* 0 operations in float", printed)


@pytest.mark.slow
def test_on_several_machines(files, tmp_path):
    """By the benchmark that the guide names, which starts the guide's script."""
    printed = run(
        *("../../benchmarks/workers.py", f"--output_dir={tmp_path / 'out'}"),
        *(f"--model={files / 'model.keras'}", f"--dataset={files / 'data.npz'}"),
        *("--train_split=train[:128]", "--learning_rate=0.01"),
    )
    found = re.search(r"2 processes and one device: weights at most (\S+) apart", printed)
    assert float(found[1]) < 1e-5
    found = re.search(r"last place away, and one device: weights at most (\S+) apart", printed)
    assert 0 < float(found[1]) < 1e-5
