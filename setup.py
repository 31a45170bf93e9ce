"""Package layout, and the native operator (other metadata: pyproject.toml).

keras_layers/ and kernels/ install inside espace_tf. The operator's binary is compiled against the
TensorFlow that is installed where this runs; without it, or without a compiler, the package is pure
Python and runs plain TensorFlow. `pip install --no-build-isolation .` lets pip see the TensorFlow.
The delegate for LiteRT needs the compiler alone.
Where nvcc is found as well, and that TensorFlow is built with CUDA, a second binary for GPUs, which
is experimental, is compiled for the compute capabilities in ESPACE_TF_CUDA_ARCHITECTURES ("" for
none; where it is not set, "80 90" on a machine with a GPU).
"""

import os
import platform
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError, SetupError

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools below 70.1
    from wheel.bdist_wheel import bdist_wheel

REMEDY = (
    "espace_tf will run plain TensorFlow operations, which is right but slower, and export files "
    "for LiteRT with built-in operators only. For the native operator and the delegate have "
    "TensorFlow and a C++17 compiler (g++ or clang++) installed, then run `make native` in a "
    "checkout, or `pip install --no-build-isolation .`"
)
CORE = (
    *("program", "validate", "cpu/convolution", "cpu/masked_conv2d", "cpu/gradients"),
    *("cpu/depthwise", "cpu/dense", "cpu/pooling", "cpu/narrow", "cpu/windows"),
    *("cpu/fused_graph", "cpu/prepared_program", "cpu/step_pieces", "cpu/variants"),
    *("cpu/variant_portable", "cpu/channels_portable", "cpu/pointwise_portable"),
)
# The delegate for LiteRT needs the core and no TensorFlow.
DELEGATE = ("delegate", "stretch", "team")
OPERATIONS = ("convolution_ops", "pool_op", "fused_graph_op")
# One file per instruction set, compiled for it; the rest runs on every processor of the family.
AVX2, AVX512 = ["-mavx2", "-mfma", "-mf16c"], ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mfma"]
INSTRUCTION_SETS = {
    "cpu/variant_avx2": AVX2,
    "cpu/variant_avx512": AVX512,
    "cpu/channels_avx2": AVX2,
    "cpu/channels_avx512": AVX512,
    "cpu/pointwise_avx2": AVX2,
    "cpu/pointwise_avx512": AVX512,
}
# The operator on GPUs: the kernels, by element type, and the TensorFlow operation.
GPU_SOURCES = [
    *(f"kernels/core/cuda/run_{name}.cu.cc" for name in ("float32", "float16", "bfloat16")),
    "kernels/core/cuda/masked_conv2d.cu.cc",
    "kernels/tf/masked_conv2d_gpu_op.cc",
]
# Minutes of compiling that are of no use without a GPU, unless they are asked for.
HAS_GPU = Path("/dev/nvidiactl").exists()
CUDA_ARCHITECTURES = os.environ.get(
    "ESPACE_TF_CUDA_ARCHITECTURES", "80 90" if HAS_GPU else ""
).split()


class NativeExtension(Extension):
    """The core with a glue; optional, so that a failure to build it is not fatal."""

    def __init__(self, name, folder, glue):
        intel = platform.machine() in ("x86_64", "AMD64")
        core = [*CORE, *(INSTRUCTION_SETS if intel else ())]
        sources = [f"kernels/core/{each}.cc" for each in core]
        sources += [f"kernels/{folder}/{each}.cc" for each in glue]
        headers = [str(path) for path in Path("kernels").glob("**/*.[hi]*")]
        super().__init__(f"espace_tf.kernels.{name}", sources, depends=headers, optional=True)


class GpuExtension(Extension):
    """The same operation for GPUs, loaded only where there is one; optional, too."""

    def __init__(self):
        depends = [str(path) for path in Path("kernels").glob("**/*.h")]
        super().__init__(
            "espace_tf.kernels._masked_conv2d_gpu", GPU_SOURCES, depends=depends, optional=True
        )


class BuildNative(build_ext):
    """Compiles the delegate for LiteRT, and the operations against the installed TensorFlow."""

    def initialize_options(self):
        """Nothing is compiled yet."""
        super().initialize_options()
        self.objects = {}  # by source: extensions share the core's

    def get_ext_filename(self, name):
        """Where the binary goes: no suffix of a Python version, since it holds no Python.

        What TensorFlow is to load is named after the minor version of that.
        """
        suffix = "" if name.endswith("_litert") else f".tf{tensorflow_minor()}"
        return str(Path(*name.split("."))) + f"{suffix}.so"

    def build_extension(self, extension):
        """Compiles each file for its instruction set, and links; nothing if nothing has changed."""
        target = self.get_ext_fullpath(extension.name)
        if not self.force and _is_newest(target, [*extension.sources, *extension.depends]):
            return
        if extension.name.endswith("_litert"):
            self.build_cpu(extension, target, [], [])
            return
        try:
            import tensorflow as tf
        except ImportError as error:
            raise SetupError(f"TensorFlow cannot be imported ({error}). {REMEDY}") from error

        if isinstance(extension, GpuExtension):
            if tf.test.is_built_with_cuda():
                self.build_gpu(extension, target, tf.sysconfig)
            return
        sysconfig = tf.sysconfig
        self.build_cpu(extension, target, sysconfig.get_compile_flags(), sysconfig.get_link_flags())

    def build_cpu(self, extension, target, compile_flags, link_flags):
        """Compiles what no other extension has, and links; compile_flags are those of the glue."""

        def compile_one(source: str) -> list[str]:
            name = source.removeprefix("kernels/core/").removesuffix(".cc")
            own = INSTRUCTION_SETS.get(name, []) if "/core/" in source else compile_flags
            # Two binaries of one process hold the core: each is to find its own, hidden from all.
            hidden = [] if "/tf/" in source else ["-fvisibility=hidden"]
            flags = ["-O3", "-g0", "-std=c++17", "-fPIC", "-w", "-Ikernels", *hidden, *own]
            return self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=flags)

        try:
            with ThreadPoolExecutor() as pool:
                missing = [source for source in extension.sources if source not in self.objects]
                self.objects.update(zip(missing, pool.map(compile_one, missing), strict=True))
            objects = [name for source in extension.sources for name in self.objects[source]]
            postargs = [*link_flags, "-pthread"]
            self.compiler.link_shared_object(
                objects, target, extra_postargs=postargs, target_lang="c++"
            )
        except CCompilerError as error:
            raise CompileError(f"the C++ compiler failed ({error}). {REMEDY}") from error

    def build_gpu(self, extension, target, sysconfig):
        """With nvcc. The CUDA runtime is linked in, so that the library loads without it."""
        flags = ["-x", "cu", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-w", "-DGOOGLE_CUDA"]
        flags += ["-Xcompiler", "-fPIC", "-Ikernels"]
        for number in CUDA_ARCHITECTURES:
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        last = CUDA_ARCHITECTURES[-1]  # its PTX is for GPUs yet to come
        flags.append(f"-gencode=arch=compute_{last},code=compute_{last}")
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)

        def compile_one(source: str) -> str:
            output = str(Path(self.build_temp, Path(source).name + ".o"))
            extra = sysconfig.get_compile_flags() if "/tf/" in source else []
            self.spawn(["nvcc", *flags, *extra, "-c", source, "-o", output])
            return output

        try:
            with ThreadPoolExecutor() as pool:
                objects = list(pool.map(compile_one, extension.sources))
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            linked = ["-shared", "-cudart", "static", *objects, *sysconfig.get_link_flags()]
            self.spawn(["nvcc", *linked, "-o", target])
        except BaseError as error:
            raise CompileError(
                f"nvcc failed ({error}). espace_tf will not have its operator on GPUs"
            ) from error


class Wheel(bdist_wheel):
    """Tags a wheel with a binary for its platform and any Python 3, another one as pure."""

    def get_tag(self):
        """(python, abi, platform)."""
        if any(Path(self.bdist_dir).glob("espace_tf/kernels/*.so")):
            return "py3", "none", super().get_tag()[2]
        return "py3", "none", "any"


def _is_newest(target: str, sources: list[str]) -> bool:
    """Whether a file is there and no source is newer."""
    made = Path(target)
    return made.is_file() and all(
        Path(source).stat().st_mtime <= made.stat().st_mtime for source in sources
    )


def tensorflow_minor() -> str:
    """ "2.21" of the TensorFlow in this environment, "none" without one."""
    for name in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
        try:
            return ".".join(metadata.version(name).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
    return "none"


# Of an editable installation setuptools says that a folder of the package's name comes first, as it
# should here.
warnings.filterwarnings("ignore", message="Editable installation")
# PEP 639's License-Expression, which older ones refuse.
expression = int(metadata.version("setuptools").split(".")[0]) >= 77
gpu_wanted = bool(CUDA_ARCHITECTURES and shutil.which("nvcc"))
extensions = [
    NativeExtension("_litert", "litert", DELEGATE),
    NativeExtension("_masked_conv2d", "tf", OPERATIONS),
    *([GpuExtension()] if gpu_wanted else []),
]
setup(
    **{"license_expression" if expression else "license": "Apache-2.0"},
    package_dir={
        "espace_tf": "espace_tf",
        "espace_tf.keras_layers": "keras_layers",
        "espace_tf.kernels": "kernels",
    },
    packages=[
        *find_packages(include=["espace_tf", "espace_tf.*"]),
        *("espace_tf.keras_layers", "espace_tf.kernels"),
    ],
    # By pattern: folders of C++ are data and no packages, which is what `include` takes them for.
    include_package_data=False,
    package_data={
        "espace_tf": ["py.typed"],
        "espace_tf.reports": ["templates/*.html"],
        "espace_tf.kernels": [f"{folder}/**/*" for folder in ("core", "litert", "tf")],
    },
    ext_modules=extensions,
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
