"""Standard error without what TensorFlow's C++ parts tell of their progress."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# Runs in a process of its own: what is written just before a crash still comes out.
_FILTER = r"""
import re, sys
chatter = re.compile(
    rb"[IW]\d{4} \d\d:\d\d:[\d.]+ +\d+ [\w./-]+\.cc:\d+\]"
    rb"|INFO: |WARNING: All log messages before absl::InitializeLog"
    rb"|E\d{4} .* failed call to cuInit: "
    rb"|fully_quantize: |To enable the following instructions: "
)
for line in sys.stdin.buffer:
    if not chatter.match(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Leaves out, while open, the lines of information and warning that C++ code writes.

    TF_CPP_MIN_LOG_LEVEL does not do it: TensorFlow 2.21 logs while it is imported whatever that
    says, and its converter and LiteRT write what they like. Errors, and all that Python writes,
    come through in their order.

    Example:
        >>> with without_chatter():
        ...     export_tflite(model, "model.tflite")
    """
    sys.stderr.flush()
    former = os.dup(2)
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _FILTER],
        stdin=subprocess.PIPE,
        stdout=former,
        start_new_session=True,  # an interrupt from the keyboard is for this process
    ) as child:
        os.dup2(child.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(former, 2)
            os.close(former)
            child.stdin.close()
