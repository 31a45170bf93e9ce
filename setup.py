"""Package layout, and the native operator (other metadata: pyproject.toml).

keras_layers/ and kernels/ install inside espace_tf. The operator's binary is compiled against the
TensorFlow that is installed where this runs; without it, or without a compiler, the package is pure
Python and runs plain TensorFlow. `pip install --no-build-isolation .` lets pip see the TensorFlow.
"""

import platform
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, SetupError
from setuptools.modified import newer_group

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools below 70.1
    from wheel.bdist_wheel import bdist_wheel

REMEDY = (
    "espace_tf will run plain TensorFlow operations, which is right but slower. For the native "
    "operator have TensorFlow and a C++17 compiler (g++ or clang++) installed, then run "
    "`make native` in a checkout, or `pip install --no-build-isolation .`"
)
CORE = ("masked_conv2d", "gradients", "reference", "variants", "variant_portable")
# One file per instruction set, compiled for it; the rest runs on every processor of the family.
INSTRUCTION_SETS = {
    "variant_avx2": ["-mavx2", "-mfma"],
    "variant_avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma"],
}


class NativeExtension(Extension):
    """The TensorFlow operation; optional, so that a failure to build it is not fatal."""

    def __init__(self):
        intel = platform.machine() in ("x86_64", "AMD64")
        core = [*CORE, *(INSTRUCTION_SETS if intel else ())]
        sources = [*(f"kernels/core/{name}.cc" for name in core), "kernels/tf/masked_conv2d_op.cc"]
        headers = [str(path) for path in Path("kernels/core").glob("*.[hi]*")]
        super().__init__(
            "espace_tf.kernels._masked_conv2d", sources, depends=headers, optional=True
        )


class BuildNative(build_ext):
    """Compiles against the installed TensorFlow; the file is named after its minor version."""

    def get_ext_filename(self, name):
        """Where the binary goes: no suffix of a Python version, since it holds no Python."""
        return str(Path(*name.split("."))) + f".tf{tensorflow_minor()}.so"

    def build_extension(self, extension):
        """Compiles each file for its instruction set, and links; nothing if nothing has changed."""
        target = self.get_ext_fullpath(extension.name)
        if not self.force and not newer_group([*extension.sources, *extension.depends], target):
            return
        try:
            import tensorflow as tf
        except ImportError as error:
            raise SetupError(f"TensorFlow cannot be imported ({error}). {REMEDY}") from error

        def compile_one(source: str) -> list[str]:
            extra = INSTRUCTION_SETS.get(Path(source).stem, [])
            if "/tf/" in source:
                extra = [*tf.sysconfig.get_compile_flags(), "-Ikernels"]
            flags = ["-O3", "-g0", "-std=c++17", "-fPIC", "-w", *extra]
            return self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)

        try:
            with ThreadPoolExecutor() as pool:
                objects = [
                    name for names in pool.map(compile_one, extension.sources) for name in names
                ]
            self.compiler.link_shared_object(
                objects,
                target,
                extra_postargs=[*tf.sysconfig.get_link_flags(), "-pthread"],
                target_lang="c++",
            )
        except CCompilerError as error:
            raise CompileError(f"the C++ compiler failed ({error}). {REMEDY}") from error


class Wheel(bdist_wheel):
    """Tags a wheel with a binary for its platform and any Python 3, another one as pure."""

    def get_tag(self):
        """(python, abi, platform)."""
        if any(Path(self.bdist_dir).glob("**/_masked_conv2d.tf*.so")):
            return "py3", "none", super().get_tag()[2]
        return "py3", "none", "any"


def tensorflow_minor() -> str:
    """ "2.21" of the TensorFlow in this environment, "none" without one."""
    for name in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
        try:
            return ".".join(metadata.version(name).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
    return "none"


setup(
    package_dir={
        "espace_tf": "espace_tf",
        "espace_tf.keras_layers": "keras_layers",
        "espace_tf.kernels": "kernels",
    },
    packages=[
        *("espace_tf", "espace_tf.bin", "espace_tf.zoo"),
        *("espace_tf.keras_layers", "espace_tf.kernels"),
    ],
    package_data={"espace_tf": ["templates/*.html", "py.typed"]},
    ext_modules=[NativeExtension()],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
