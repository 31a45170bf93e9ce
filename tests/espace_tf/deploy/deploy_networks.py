"""Small networks for the tests of exports, and how a file is run without this library."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D

SEED = 7
BOTH_LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def images(count: int, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(SEED).random((count, 12, 12, channels), np.float32)


def network(library=keras):
    """A convolution with a batch norm whose statistics are not the initial ones, and a head."""
    library.utils.set_random_seed(SEED)
    inputs = library.Input((12, 12, 2), name="image")
    x = library.layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = library.layers.BatchNormalization()(x)
    x = library.layers.ReLU()(x)
    x = library.layers.Dropout(0.3)(x)
    x = library.layers.GlobalAveragePooling2D()(x)
    model = library.Model(inputs, library.layers.Dense(5, name="logits")(x), name="small")
    generator = np.random.default_rng(SEED)
    model.set_weights([generator.uniform(0.2, 1, w.shape) - 0.5 * (w.ndim > 1)
                       for w in model.get_weights()])  # fmt: skip
    return model


def masked_network():
    keras.utils.set_random_seed(SEED)
    positions = np.flatnonzero(np.random.default_rng(SEED).random(144) < 0.4)
    return keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            MaskedConv2D(6, 3, padding="same", positions=positions, activation="relu"),
            DecomposedConv2D(8, 3, rank=3, padding="same", positions=positions[::2]),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(4),
        ]
    )


def runs(path: Path, batch: np.ndarray) -> np.ndarray:
    """The file's first output, by the plain interpreter: an own oracle of how to run it."""
    interpreter = Interpreter(model_path=str(path))
    (entry,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], batch)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
