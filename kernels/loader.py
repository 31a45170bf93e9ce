"""Finds, gates and loads the binary of the native operator, and says why when it does not run.

The binary lies beside this file and carries the minor version of the TensorFlow that it was built
against in its name. It is loaded at the first use of the operator, by this path only: a second copy
of it in one process would register every operation twice. Where there is a GPU, a second binary
adds the operator on GPUs to it; where that one is missing, the reference runs, which knows GPUs.
"""

import contextlib
import contextvars
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import tensorflow as tf

from espace_tf.kernels import selftest

VARIABLE = "ESPACE_TF_BACKEND"
STEM = "_masked_conv2d.tf"
GPU_STEM = "_masked_conv2d_gpu.tf"
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


@dataclass(frozen=True)
class Backend:
    """What runs the operators, and why it is this.

    Args:
        name: "native" or "reference".
        reason: why this one was chosen.
        operations: the loaded native operations, or None.
    """

    name: str
    reason: str
    operations: ModuleType | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@functools.cache
def backend() -> Backend:
    """The backend that runs in this process; prints as its name and the reason.

    The first call loads the binary; `load` says when it warns.

    Example:
        >>> str(backend())  # "native (_masked_conv2d.tf2.21.so)", or "reference" and the reason
        '... (...)'
    """
    operations, reason = load()
    return Backend("reference" if operations is None else "native", reason, operations)


def operations_now(on_gpu: bool = False) -> ModuleType | None:
    """The native operations, if the call that is being made now is to use them.

    Args:
        on_gpu: whether the operation exists on GPUs; where there is one, others do not run.
    """
    if not on_gpu and tf.config.list_physical_devices("GPU"):
        return None
    operations = backend().operations
    return None if operations is None or plain_wanted() else operations


def load() -> tuple[ModuleType | None, str]:
    """The native operations, or None, and the reason.

    Warns once per call when the binary is missing, of another TensorFlow, or broken; not when the
    environment variable ESPACE_TF_BACKEND asks for the reference, or a GPU is there and the binary
    for GPUs is not.

    Raises:
        ValueError: the environment variable is neither "reference" nor "native".
    """
    wanted = os.environ.get(VARIABLE, "native")
    if wanted not in ("native", "reference"):
        raise ValueError(f"{VARIABLE} must be 'native' or 'reference'. Received: {wanted!r}")
    if wanted == "reference":
        return None, f"{VARIABLE}=reference"
    minor = ".".join(tf.__version__.split(".")[:2])
    gpu = Path(__file__).with_name(f"{GPU_STEM}{minor}.so")
    devices = tf.config.list_physical_devices("GPU")
    if devices and not gpu.is_file():
        return None, "there is a GPU, and no native binary for GPUs"
    path = Path(__file__).with_name(f"{STEM}{minor}.so")
    module, reason = _open(path, gpu if devices else None)
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
    """Whether the operations made now must be TensorFlow's own: for a file, or for XLA.

    Reads the names of the calling modules, since nothing else tells: `tf.saved_model.save` has a
    context (`save_context`), but Keras's export and the TFLite converter trace the model before
    they enter it, in functions like any other; and a function knows of `jit_compile` itself, while
    the graph that is traced for it does not.
    """
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


def _open(path: Path, gpu: Path | None) -> tuple[ModuleType | None, str]:
    """The operations of `path`, with those for GPUs of `gpu`, once a small call has worked."""
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
        if gpu is not None:
            tf.load_library(str(gpu))
        with tf.init_scope():  # on the GPU where there is one
            selftest.check_small(module)
            if gpu is not None:
                selftest.check_all(module)
    except (tf.errors.OpError, OSError, AttributeError, TypeError, ValueError) as error:
        return None, f"the native binary {(gpu or path).name} does not work ({str(error)[:200]})"
    return module, path.name if gpu is None else f"{path.name}, {gpu.name}"
