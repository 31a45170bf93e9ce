"""Which backend runs and what is said about it: each case in a process and package of its own."""

import importlib.util
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tensorflow as tf

from espace_tf.kernels import loader, selftest

ROOT = Path(loader.__file__).parent.parent
PROGRAM = """
import sys, warnings
sys.path.insert(0, {package!r})
import espace_tf, espace_tf.keras_layers
from espace_tf import kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    if {used}:
        import numpy as np, tensorflow as tf
        for _ in range(2):
            shown = kernels.masked_conv2d(
                tf.ones([1, 2, 1]), tf.ones([1, 1, 1]), None, np.array([[0]], np.int32), None
            )
            assert shown.numpy().tolist() == [[[1.0]]]
        print("backend:", kernels.backend())
print("warnings:", len(caught), *(str(w.message) for w in caught))
"""


def run(package: Path, used: bool = True, **variables: str) -> str:
    """What a fresh process prints; its own copy of the package, so nothing else is found."""
    environment = {k: v for k, v in os.environ.items() if k != loader.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM.format(package=str(package), used=used)],
        env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
        cwd=package,
        capture_output=True,
        text=True,
    )
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture
def package(tmp_path) -> Path:
    """The Python files, no binary."""
    for folder in ("espace_tf", "keras_layers", "kernels"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "core", "tf")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    return tmp_path


def name_for(version: str) -> str:
    return f"{loader.STEM}{'.'.join(version.split('.')[:2])}.so"


def test_nothing_is_said_before_the_operator_is_used(package):
    assert "warnings: 0" in run(package, used=False)


def test_without_a_binary_the_reference_runs_and_one_warning_says_how_to_get_it(package):
    said = run(package)
    assert "backend: reference (there is no native binary)" in said
    assert "warnings: 1" in said and "make native" in said


def test_a_binary_of_another_tensorflow_is_not_loaded(package):
    (package / "kernels" / name_for("2.7.1")).write_bytes(b"not even read")
    said = run(package)
    assert f"built for TensorFlow 2.7, this is {tf.__version__}" in said
    assert "backend: reference" in said and "warnings: 1" in said


def test_a_broken_binary_is_refused_in_words(package):
    (package / "kernels" / name_for(tf.__version__)).write_bytes(b"not a loader")
    said = run(package)
    assert "backend: reference" in said and "warnings: 1" in said
    assert f"{name_for(tf.__version__)} does not work" in said


def test_a_library_without_the_operation_is_refused_in_words(package):
    other = importlib.util.find_spec("_ctypes").origin  # a loader without operations
    shutil.copy(other, package / "kernels" / name_for(tf.__version__))
    said = run(package)
    assert "backend: reference" in said and "does not work" in said


@pytest.mark.parametrize("missing", ["espace_pool", "threads"])
def test_a_binary_older_than_the_package_is_refused_in_words(monkeypatch, missing):
    made = loader.backend().operations or pytest.skip("no native binary")

    class Older:
        """Operations of which something was added later."""

        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(name)
            return getattr(made, name)

        @staticmethod
        def espace_fused_graph(**attributes):
            if missing in attributes:
                raise TypeError(f"got an unexpected keyword argument '{missing}'")
            return made.espace_fused_graph(**attributes)

    monkeypatch.setattr(loader.tf, "load_op_library", lambda _: Older())
    with pytest.warns(RuntimeWarning, match=f"does not work .*{missing}.*`make native`"):
        assert loader.load()[0] is None


def test_the_environment_variable_forces_the_reference_silently(package):
    said = run(package, **{loader.VARIABLE: "reference"})
    assert f"backend: reference ({loader.VARIABLE}=reference)" in said and "warnings: 0" in said


def test_a_misspelt_variable_is_an_error(package):
    assert "must be 'native' or 'reference'. Received: 'fast'" in run(
        package, **{loader.VARIABLE: "fast"}
    )


@pytest.mark.skipif(
    not (ROOT / "kernels" / name_for(tf.__version__)).is_file(), reason="no native binary"
)
def test_the_native_binary_runs_silently_once_loaded(package):
    binary = name_for(tf.__version__)
    shutil.copy(ROOT / "kernels" / binary, package / "kernels" / binary)
    said = run(package)
    assert f"backend: native ({binary})" in said and "warnings: 0" in said


@pytest.mark.skipif(
    not (ROOT / "kernels" / name_for(tf.__version__)).is_file(), reason="no native binary"
)
def test_the_test_for_gpus_tells_right_from_wrong(monkeypatch):
    monkeypatch.delenv(loader.VARIABLE, raising=False)
    operations, _ = loader.load()
    selftest.check_all(operations)
    wrong = types.SimpleNamespace(
        espace_masked_conv2d=lambda *inputs, **options: (
            1.1 * operations.espace_masked_conv2d(*inputs, **options)
        ),
        espace_masked_conv2d_grad=operations.espace_masked_conv2d_grad,
    )
    with pytest.raises(ValueError, match="in float32 its out is off by 0.1"):
        selftest.check_all(wrong)


def test_with_a_gpu_and_no_binary_for_it_the_reference_runs_silently(monkeypatch):
    monkeypatch.delenv(loader.VARIABLE, raising=False)
    monkeypatch.setattr(loader.tf.config, "list_physical_devices", lambda kind: ["one"])
    monkeypatch.setattr(loader, "GPU_STEM", "_missing.tf")
    assert loader.load() == (None, "there is a GPU, and no native binary for GPUs")


@pytest.mark.skipif(
    not (ROOT / "kernels" / name_for(tf.__version__).replace("conv2d", "conv2d_gpu")).is_file(),
    reason="no native binary for GPUs",
)
def test_the_binary_for_gpus_loads_without_one_and_the_cpu_keeps_working():
    program = (
        "import tensorflow as tf\nfrom espace_tf.kernels import loader, selftest\n"
        "operations, reason = loader.load()\n"
        f"tf.load_library({str(ROOT / 'kernels')!r} + '/' + loader.GPU_STEM + "
        "'.'.join(tf.__version__.split('.')[:2]) + '.so')\n"
        "from tensorflow.python.framework import kernels\n"
        "found = kernels.get_registered_kernels_for_op('EspaceMaskedConv2DGrad').kernel\n"
        "print(sorted({kernel.device_type for kernel in found}))\n"
        "selftest.check_small(operations)\nprint('works')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["['CPU', 'GPU']", "works"], done.stderr
