"""What `import espace_tf` offers, and that it makes saved models loadable."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

import espace_tf

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_there_once():
    assert len(set(espace_tf.__all__)) == len(espace_tf.__all__)
    for name in espace_tf.__all__:
        assert hasattr(espace_tf, name), name
    assert espace_tf.ops.masked_conv2d is espace_tf.kernels.masked_conv2d


def test_importing_espace_tf_is_enough_to_load_a_compressed_model(tmp_path):
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(8, 3, name="conv")])
    plan = espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=0.5)
    small = espace_tf.apply(model, plan)
    small.save(tmp_path / "small.keras")
    images = np.random.default_rng(0).random((2, 12, 12, 3), np.float32)
    np.save(tmp_path / "outputs.npy", small(images))
    program = (
        "import espace_tf, keras, numpy as np\n"
        "model = keras.models.load_model('small.keras')\n"
        "images = np.random.default_rng(0).random((2, 12, 12, 3), np.float32)\n"
        "np.testing.assert_allclose(model(images), np.load('outputs.npy'), atol=1e-5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
