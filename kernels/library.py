"""Finds, gates and loads the one binary of the native operator, and says why when it does not run.

The binary lies beside this file and carries the minor version of the TensorFlow that it was built
against in its name. It is loaded at the first use of the operator, by this path only: a second copy
of it in one process would register every operation twice.
"""

import contextlib
import contextvars
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import tensorflow as tf

VARIABLE = "ESPACE_TF_BACKEND"
STEM = "_masked_conv2d.tf"
REMEDY = (
    "To build the native one: `make native` in a checkout, or `pip install --no-build-isolation "
    f"<the sources>`. To silence this: set the environment variable {VARIABLE}=reference."
)
# Modules that trace a model in order to write it to a file.
EXPORTERS = (
    "keras.src.export.",
    "tf_keras.src.saving.legacy.saved_model.",
    "tensorflow.lite.python.",
    "tensorflow.python.saved_model.",
)
TRACER = "tensorflow.python.eager.polymorphic_function.polymorphic_function"

_plain = contextvars.ContextVar("espace_tf_plain", default=False)


def load() -> tuple[ModuleType | None, str]:
    """The native operations, or None, and the reason.

    Warns once per call when the binary is missing, of another TensorFlow, or broken; not when the
    environment variable ESPACE_TF_BACKEND asks for the reference, or a GPU is there to run on.

    Raises:
        ValueError: the environment variable is neither "reference" nor "native".
    """
    wanted = os.environ.get(VARIABLE, "native")
    if wanted not in ("native", "reference"):
        raise ValueError(f"{VARIABLE} must be 'native' or 'reference'. Received: {wanted!r}")
    if wanted == "reference":
        return None, f"{VARIABLE}=reference"
    if tf.config.list_physical_devices("GPU"):
        return None, "the native operator runs on CPUs only, and there is a GPU"
    path = Path(__file__).with_name(f"{STEM}{_minor(tf.__version__)}.so")
    module, reason = _open(path)
    if module is None:
        warnings.warn(
            f"espace_tf runs its reference operator, which is slower: {reason}. {REMEDY}",
            RuntimeWarning,
            stacklevel=2,
        )
    return module, reason


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Functions that are traced in this context hold plain TensorFlow operations only.

    For what is to run without this package. `model.export`, the TFLite converter and
    `tf.saved_model.save` need no help when they trace the model themselves; a function that was
    traced before does.

    Example:
        >>> with plain():
        ...     concrete = tf.function(model).get_concrete_function(signature)
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def plain_wanted() -> bool:
    """Whether the operations made now must be TensorFlow's own: for a file, or for XLA."""
    if _plain.get():
        return True
    if tf.executing_eagerly():
        return False
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(EXPORTERS):
            return True
        if name == TRACER and getattr(frame.f_locals.get("self"), "_jit_compile", False):
            return True
        frame = frame.f_back
    return False


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _open(path: Path) -> tuple[ModuleType | None, str]:
    if not path.is_file():
        others = sorted(
            other.name[len(STEM) : -len(".so")] for other in path.parent.glob(f"{STEM}*.so")
        )
        if others:
            return None, (
                f"the native binary was built for TensorFlow {', '.join(others)}, "
                f"this is {tf.__version__}"
            )
        return None, "there is no native binary"
    try:
        module = tf.load_op_library(str(path))
        with tf.init_scope():
            _test(module)
    except (tf.errors.OpError, OSError, AttributeError, ValueError) as error:
        return None, f"the native binary {path.name} does not work ({str(error)[:200]})"
    return module, f"{path.name}"


def _test(module: ModuleType) -> None:
    """Raises ValueError unless a small call gives what it must."""
    shown = module.espace_masked_conv2d(
        tf.constant([[[1.0, 2.0], [3.0, 4.0]]]),
        tf.constant([[[1.0], [1.0]], [[10.0], [10.0]]]),
        tf.constant([[0, 1], [-1, 0]]),
        tf.constant([1, 0, 0]),
        tf.constant([-31.0]),
        activation="relu",
        use_spread=True,
        use_bias=True,
    ).numpy()
    if not np.array_equal(shown.ravel(), [0.0, 42.0, 42.0]):
        raise ValueError(f"its self-test gave {shown.ravel().tolist()}, not [0, 42, 42]")
