"""Weights as TensorFlow.js writes them."""

import numpy as np
import pytest

from benchmarks.tensorflow_js import tensors


def test_weights_of_tensorflow_js():
    random = np.random.default_rng(5)
    plain = random.standard_normal((3, 2)).astype(np.float32)
    small = random.integers(0, 255, (2, 2, 5), np.uint8)
    how = {"dtype": "uint8", "scale": 0.25, "min": -3.0}
    manifest = [
        {"weights": [{"name": "a", "shape": [3, 2], "dtype": "float32"}]},
        {"weights": [{"name": "b", "shape": [2, 2, 5], "dtype": "float32", "quantization": how}]},
    ]
    found = tensors(manifest, plain.tobytes() + small.tobytes())
    np.testing.assert_array_equal(found["a"], plain)
    np.testing.assert_allclose(found["b"], small * 0.25 - 3.0)
    with pytest.raises(ValueError, match="must fill 45 bytes"):
        tensors(manifest, plain.tobytes() + small.tobytes() + b"x")
