"""The delegate in the LiteRT that other people install, on an emulated aarch64 processor.

    make litert-python-aarch64

Unpacks Debian's Python and the wheels of LiteRT and NumPy for aarch64 below build/, writes files
with fused stretches here, and runs them there with libespace_litert.so: one image and several, on
one thread and on two. What comes out must be what this processor's delegate computes.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

_FOLDER = Path("build/aarch64")
_DELEGATE = Path("build/litert_aarch64/libespace_litert.so")
_DEBIAN = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
_WHEELS = ("ai-edge-litert", "numpy", "flatbuffers", "typing-extensions", "tqdm")
_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")
# What LiteRT's own kernels read to know the processor; QEMU shows them the host's.
_PROCESSOR = """processor : 0
BogoMIPS : 50.00
Features : fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer : 0x41
CPU architecture: 8
CPU variant : 0x0
CPU part : 0xd0b
CPU revision : 1
"""
_BATCHES, _THREADS, _SEED = (1, 3), (1, 2), 11
_NEAR = 1e-5


def system() -> Path:
    """The folder of an aarch64 Debian with Python, the wheels in its /wheels; made once."""
    root = _FOLDER / "root"
    if root.is_dir():
        return root
    state, new = _FOLDER / "apt", _FOLDER / "new"
    for folder in (state / "lists" / "partial", state / "cache" / "archives" / "partial", new):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    (state / "status").touch()
    known = {"APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": state}
    known |= {"Dir::State::status": state / "status", "Dir::Cache": state / "cache"}
    given = {key: str(Path(v).resolve()) if isinstance(v, Path) else v for key, v in known.items()}
    options = [f"--option={key}={value}" for key, value in given.items()]
    apt = ["apt-get", "-qq", *options]
    subprocess.run([*apt, "update"], check=True)
    fetch = [*apt, "install", "--download-only", "--no-install-recommends", "--yes", *_DEBIAN]
    subprocess.run(fetch, check=True)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, new], check=True)
    wheels = _FOLDER / "wheels"
    platforms = [f"--platform={each}" for each in _PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platforms]
    command += ["--python-version=3.11", "--only-binary=:all:", f"--dest={wheels}", *_WHEELS]
    subprocess.run(command, check=True)
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(new / "wheels")
    (new / "proc").mkdir(exist_ok=True)
    (new / "proc" / "cpuinfo").write_text(_PROCESSOR)
    new.rename(root)
    return root


def write_files(folder: Path) -> None:
    """Networks with fused stretches as NAME.tflite, with inputs and what this processor makes."""
    import keras

    import espace_tf
    from espace_tf import litert

    k, random = keras.layers, np.random.default_rng(_SEED)
    keras.utils.set_random_seed(_SEED)
    inputs = keras.Input((17, 15, 3))
    y = x = k.Conv2D(24, 3, activation="relu", padding="same")(inputs)
    y = k.Conv2D(24, 5, padding="same")(y)
    y = k.DepthwiseConv2D(3, padding="same")(k.ReLU(6)(k.Add()([x, y])))
    y = k.Conv2D(40, 3, strides=2, activation="swish")(k.MaxPooling2D(3, 2)(y))
    y = k.Dense(10)(k.GlobalAveragePooling2D()(y))
    model = keras.Model(inputs, k.Softmax()(y))
    for keep in (1.0, 0.5):
        small = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=keep))
        for quantize in (None, "float16"):
            name = f"keep-{keep:g}-{quantize or 'float32'}"
            path = folder / f"{name}.tflite"
            espace_tf.export_tflite(small, path, kernel="fused", quantize=quantize)
            arrays = {}
            for batch in _BATCHES:
                given = random.normal(size=(batch, *inputs.shape[1:])).astype(np.float32)
                arrays[f"x{batch}"] = given
                arrays[f"y{batch}"] = outputs(path, given, litert.delegate(strict=True), 1)
            np.savez(folder / f"{name}.npz", **arrays)


def outputs(path: Path, given: np.ndarray, delegate: object | None, threads: int) -> np.ndarray:
    """Of a file with one input and one output, in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    delegates = [] if delegate is None else [delegate]
    options = {"num_threads": threads, "experimental_delegates": delegates}
    interpreter = Interpreter(str(path), **options)
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(entry["index"], given.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], given)
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])


def compare(folder: Path, library: Path) -> None:
    """Runs every file with the delegate and without, and compares; this is emulated."""
    from ai_edge_litert.interpreter import load_delegate

    compared = 0
    for path in sorted(folder.glob("*.tflite")):
        known = np.load(path.with_suffix(".npz"))
        for batch in _BATCHES:
            for threads in _THREADS:
                for loaded in (True, False):
                    options = {"num_threads": "0", "strict": "1"}
                    delegate = load_delegate(str(library), options) if loaded else None
                    found = outputs(path, known[f"x{batch}"], delegate, threads)
                    apart = float(np.abs(found - known[f"y{batch}"]).max())
                    told = f"{path.stem}, batch {batch}, {threads} threads, delegate {loaded}"
                    assert apart <= _NEAR, f"{told}: {apart:.1e} apart; seed {_SEED}"
                    compared += 1
    print(f"{os.uname().machine}: {compared} runs within {_NEAR:g} of this processor's")


def main() -> None:
    """Makes what is needed and starts `compare` in it."""
    root, files = system().resolve(), _FOLDER / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    write_files(files)
    command = ["qemu-aarch64", "-L", root, "-E", f"PYTHONHOME={root / 'usr'}"]
    command += ["-E", f"PYTHONPATH={root / 'wheels'}", root / "usr" / "bin" / "python3.11"]
    subprocess.run([*command, __file__, files.resolve(), _DELEGATE.resolve()], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        compare(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
