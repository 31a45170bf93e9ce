"""A tiny network and tiny data for the scripts of benchmarks/, which run as a user runs them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SEED = 5


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with tiny.keras, three classes of 24 x 24 images, and data.npz."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential(
        [
            keras.Input((24, 24, 1)),
            keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(32, 5, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    keras.Model(model.inputs[0], model.outputs[0], name="tiny").save(folder / "tiny.keras")
    generator = np.random.default_rng(SEED)
    arrays = {"x": generator.integers(0, 256, (96, 24, 24), np.uint8)}
    arrays |= {"y": generator.integers(0, 3, 96), "x_test": arrays["x"][:32]}
    np.savez(folder / "data.npz", **arrays, y_test=arrays["y"][:32])
    return folder


@pytest.fixture
def start():
    """start(script, *flags): the process of a script of benchmarks/; killed when the test ends."""
    environment, processes = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, []

    def started(script: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Returns when a file appears that a process writes."""
    end = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


@pytest.fixture(name="wait_for")
def _wait_for():
    return wait_for
