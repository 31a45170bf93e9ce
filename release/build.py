"""The files of a release: the sources, and a wheel with the operator for the installed TensorFlow.

    python release/build.py --output_dir=dist          (make wheel)

The wheel is built from the sources, as anyone else would. auditwheel reads which symbols of the C
and C++ libraries the operator needs, and names the oldest system that has them in the wheel's tag;
the build number of the wheel is the minor version of TensorFlow. Without a compiler, or without a
TensorFlow, the wheel is pure Python, which is an error here.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from absl import app, flags

_ROOT = Path(__file__).parent.parent
_OUTPUT = flags.DEFINE_string("output_dir", str(_ROOT / "dist"), "Where the files go.")


def run(*command: object) -> None:
    """A module of this Python, with the programs of its environment in reach."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # The operator on GPUs is experimental: it is compiled where it is used.
    env = {**os.environ, "PATH": programs, "ESPACE_TF_CUDA_ARCHITECTURES": ""}
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, cwd=_ROOT, env=env)


def minor_of(wheel: Path) -> str:
    """The minor version of TensorFlow that a wheel's operator is for."""
    with zipfile.ZipFile(wheel) as archive:
        found = [re.fullmatch(r".*\.tf(\d+\.\d+)\.so", name) for name in archive.namelist()]
    minors = [match[1] for match in found if match]
    if len(minors) != 1:
        raise SystemExit(f"{wheel.name} must hold one operator. Found for TensorFlow: {minors}")
    return minors[0]


def main(argv: list[str]) -> None:
    """Builds both and prints their names."""
    del argv
    output = Path(_OUTPUT.value)
    with tempfile.TemporaryDirectory() as folder:
        run("build", "--no-isolation", "--outdir", folder)
        (sources,), (wheel,) = Path(folder).glob("*.tar.gz"), Path(folder).glob("*.whl")
        # TensorFlow's own library is in the process before the operator is.
        repair = ("auditwheel", "repair", "--exclude", "libtensorflow_framework.so.2")
        run(*repair, "--wheel-dir", Path(folder, "true"), wheel)
        (repaired,) = Path(folder, "true").glob("*.whl")
        run("wheel", "tags", "--remove", "--build", minor_of(repaired), repaired)
        (tagged,) = Path(folder, "true").glob("*.whl")
        output.mkdir(parents=True, exist_ok=True)
        for path in (sources, tagged):
            print(path.replace(output / path.name))


if __name__ == "__main__":
    app.run(main)
