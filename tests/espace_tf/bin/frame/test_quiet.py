"""Chatter of C++ code is left out of standard error; errors come through, also before a crash."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from espace_tf.bin.frame.quiet import without_chatter

ROOT = Path(__file__).parents[4]
QUIET = ROOT / "espace_tf" / "bin" / "frame" / "quiet.py"
CHATTER = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795412777.461385    1742 reader.cc:83] Reading SavedModel from: /tmp/tmpxf4
W0000 00:00:1795412777.460651    1742 tf_tfl_flatbuffer_helpers.cc:364] Ignored output_format.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
fully_quantize: 0, inference_type: 6
"""
SERIOUS = """E0000 00:00:1795412777.461385    1742 pooling.cc:83] out of memory
F1123 10:00:00.461385    1742 tensor.cc:83] Check failed: size > 0
W1123 10:00:00.461385    1742 compress.py:83] the labels look odd
Traceback (most recent call last):
ERROR: something that begins like a word
"""


def test_only_chatter_is_left_out(capfd):
    lines = zip(CHATTER.splitlines(True), SERIOUS.splitlines(True), strict=True)
    mixed = "".join(map("".join, lines))
    with without_chatter():
        os.write(2, mixed.encode())
    os.write(2, b"after\n")
    assert capfd.readouterr().err == SERIOUS + "after\n"


def test_an_exception_leaves_standard_error_as_it_was(capfd):
    with pytest.raises(ValueError, match="stop"), without_chatter():
        os.write(2, CHATTER.encode())
        raise ValueError("stop")
    os.write(2, b"I0000 00:00:1.0 1 a.cc:1] told again\n")
    assert "told again" in capfd.readouterr().err


def test_the_last_words_of_a_crash_are_heard():
    program = (
        "import os, importlib.util as u\n"
        f"spec = u.spec_from_file_location('quiet', {str(QUIET)!r})\n"
        "quiet = u.module_from_spec(spec); spec.loader.exec_module(quiet)\n"
        "with quiet.without_chatter():\n"
        "    os.write(2, b'F0000 00:00:1.0 1 a.cc:1] Check failed\\n'); os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT
    assert done.stderr == "F0000 00:00:1.0 1 a.cc:1] Check failed\n"
