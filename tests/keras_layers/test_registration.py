"""Files of tf_keras load in a fresh process, whichever of the two packages is imported first."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tf_keras

from espace_tf.keras_layers import for_library

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = {
    "ours first": """
import sys, importlib.util, espace_tf
assert "tf_keras" not in sys.modules
importlib.util.find_spec("tf_keras")  # only looked for
import tf_keras
""",
    "ours last": "import tf_keras, espace_tf",
}
LOADS = """
import numpy as np
inputs, expected = np.load("numbers.npz").values()
for name in ("model.keras", "model.h5"):
    found = tf_keras.models.load_model(name).predict(inputs, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
print("loaded")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of both layers in both formats, inputs and its outputs."""
    folder = tmp_path_factory.mktemp("saved")
    layers = for_library(tf_keras)
    values = first = tf_keras.Input((6, 7, 3))
    values = layers.MaskedConv2D(4, 3, padding="same", positions=range(0, 42, 3))(values)
    model = tf_keras.Model(first, layers.DecomposedConv2D(5, 3, 2, positions=[0, 9])(values))
    model.save(folder / "model.keras")
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(folder / "model.h5")
    inputs = np.random.default_rng(0).normal(size=(2, 6, 7, 3)).astype("float32")
    np.savez(folder / "numbers.npz", inputs=inputs, expected=model(inputs))
    return folder


@pytest.mark.parametrize("order", PROGRAMS)
def test_a_fresh_process_loads_both_formats(folder, order):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[order] + LOADS],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("loaded\n"), done.stderr
