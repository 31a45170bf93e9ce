"""Installs the files of a release as a stranger would, and uses them.

    python release/try_out.py dist/*          (make wheel-test)

Each file goes into an environment of its own, which sees the TensorFlow of this one; no file of the
checkout is in reach. The sources are installed without a compiler in reach. Then a network is
compressed, trained, stripped, exported and saved there: the wheel must run it in a native fused
graph, the sources must run plain TensorFlow and say why, and the wheel with an operator for another
TensorFlow must refuse it in words. Prints one line a file.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

USE = """
import sys
import keras, numpy as np, espace_tf
from keras import layers
from espace_tf.keras_layers import FusedGraph
from espace_tf.kernels.loader import operations_now

keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((16, 16, 3)),
    layers.Conv2D(32, 3, padding="same", activation="relu"),
    layers.Conv2D(32, 3, padding="same", activation="relu"),
    layers.GlobalAveragePooling2D(),
    layers.Dense(4, activation="softmax"),
])
images = np.random.default_rng(0).random((32, 16, 16, 3), "float32")
small = espace_tf.compress(model, images, speedup=1.1, verbose=0)
made = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=0.5))
espace_tf.fine_tune(made, images, teacher=model, verbose=0)
fast = espace_tf.strip(made, fuse=True)
assert any(isinstance(layer, FusedGraph) for layer in fast.layers)
np.testing.assert_allclose(fast(images), made(images), atol=1e-4)
made.save("made.keras")
loaded = keras.models.load_model("made.keras")
np.testing.assert_allclose(loaded(images), made(images), atol=1e-6)
espace_tf.export_saved_model(made, "served")
backend = espace_tf.ops.backend()
assert (operations_now() is not None) == (backend.name == "native")
print(espace_tf.__file__, backend, sep="|")
"""


def run(*command: object, cwd: Path, **env: str) -> str:
    """What a command prints; its errors are shown if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **env},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip()


def installed(path: Path, folder: Path) -> Path:
    """The Python of a fresh environment that has this file and nothing else of ours."""
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(python, *install, "--no-build-isolation", path, cwd=folder, PATH=str(python.parent))
    return python


def used(python: Path, folder: Path) -> str:
    """The backend that ran, once everything has worked."""
    env = {"ESPACE_TF_CACHE": "off", "PYTHONWARNINGS": "ignore"}
    where, backend = run(python, "-c", USE, cwd=folder, **env).splitlines()[-1].split("|")
    if not where.startswith(str(folder)):
        raise SystemExit(f"the installed package must be used, not {where}")
    return backend


def refused(python: Path, folder: Path) -> str:
    """What is said of an operator for another TensorFlow."""
    (operator,) = folder.glob("env/lib/*/site-packages/espace_tf/kernels/_masked*.so")
    operator.rename(operator.with_name("_masked_conv2d.tf2.99.so"))
    program = "import espace_tf; print(espace_tf.ops.backend())"
    return run(python, "-W", "ignore", "-c", program, cwd=folder).splitlines()[-1]


def main(paths: list[str]) -> None:
    """Tries each file."""
    if not paths:
        raise SystemExit("name the files of a release: python release/try_out.py dist/*")
    for path in map(Path, paths):
        with tempfile.TemporaryDirectory() as folder:
            python = installed(path.resolve(), Path(folder))
            backend = used(python, Path(folder))
            wheel = path.suffix == ".whl"
            if backend.startswith("native") != wheel:
                raise SystemExit(f"{path.name} must not run on {backend}")
            print(f"{path.name}: {backend}")
            if wheel:
                words = refused(python, Path(folder))
                if not words.startswith("reference (the native binary was built for"):
                    raise SystemExit(f"another TensorFlow's operator must be refused: {words}")
                print(f"{path.name}, for another TensorFlow: {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
