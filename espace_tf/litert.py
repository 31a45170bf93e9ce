"""Our kernels inside LiteRT (TensorFlow Lite): the delegate, and an interpreter that has it.

A file that `export_tflite(kernel="fused")` wrote runs on any LiteRT; where the delegate is loaded,
its fused stretches run with the native kernels.
"""

import os
from pathlib import Path
from typing import Any

from espace_tf import kernels
from espace_tf.checks import MOST_THREADS, check_count, require, warn

REMEDY = (
    "To build it: `make native` in a checkout, or `pip install <the sources>`; both need a C++17 "
    "compiler"
)


def library() -> Path:
    """The delegate's shared library, for a runtime that has a `load_delegate` of its own.

    Raises:
        FileNotFoundError: it was not built.

    Example:
        >>> from ai_edge_litert.interpreter import load_delegate
        >>> own = load_delegate(str(espace_tf.litert.library()), {"num_threads": "2"})
    """
    path = Path(kernels.__file__).with_name("_litert.so")
    if not path.is_file():
        raise FileNotFoundError(f"there is no delegate for LiteRT at {str(path)!r}. {REMEDY}")
    return path


def delegate(*, num_threads: int | None = None, strict: bool = False) -> Any:
    """The delegate, as `Interpreter(..., experimental_delegates=[...])` of LiteRT takes it.

    Args:
        num_threads: that fused stretches run on; None: as many as the interpreter has.
        strict: whether a fused stretch that it cannot run is an error, instead of being left to the
            runtime, which then runs its layers one by one.

    Raises:
        TypeError, ValueError: num_threads is no number of threads.
        FileNotFoundError: the delegate was not built.
        ImportError: LiteRT is not installed.

    Example:
        >>> from ai_edge_litert.interpreter import Interpreter
        >>> fast = Interpreter("model.tflite", experimental_delegates=[espace_tf.litert.delegate()])
    """
    if num_threads is not None:
        num_threads = check_count(num_threads, "num_threads", most=MOST_THREADS)
    path = library()
    require("litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import load_delegate

    return load_delegate(str(path), {"num_threads": num_threads or 0, "strict": int(strict)})


def interpreter(path: str | os.PathLike, num_threads: int | None = None) -> Any:
    """An interpreter of a TensorFlow Lite file, with the delegate if there is one.

    Without the delegate it warns, and runs the layers of fused stretches one by one.

    Args:
        path: the file.
        num_threads: of the whole file; None: what LiteRT takes by itself, which is one.

    Returns:
        An `ai_edge_litert.interpreter.Interpreter`.

    Raises:
        TypeError, ValueError: num_threads is no number of threads, or the file is none.
        ImportError: LiteRT is not installed.

    Example:
        >>> run = espace_tf.litert.interpreter("model.tflite", num_threads=2).get_signature_runner()
        >>> logits = run(image=images)["logits"]
    """
    if num_threads is not None:
        num_threads = check_count(num_threads, "num_threads", most=MOST_THREADS)
    require("litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    try:
        delegates = [delegate()]
    except FileNotFoundError as error:
        delegates = []
        warn(f"fused stretches run layer by layer: {error}", RuntimeWarning)
    options = {"num_threads": num_threads, "experimental_delegates": delegates}
    return Interpreter(model_path=os.fspath(path), **options)
